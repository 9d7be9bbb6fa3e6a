"""``--pmem``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

# Linux maps persistent memory in these steps (memremap_compat_align on x86: SUBSECTION_SIZE).
ALIGNMENT = 2 << 20


class PmemConfig(NamedTuple):
    """A virtio-pmem device on a file or a block device, whose size is a multiple of ALIGNMENT."""

    path: str
    readonly: bool = False

    @classmethod
    def read(cls, value: object) -> PmemConfig:
        """From ``PATH[,readonly=on|off]`` or a table with these keys."""
        if isinstance(value, str):
            path, *rest = syntax.properties(value)
            value = {"path": path, **pairs(rest)}
        return cls(**table(value, path=syntax.path, readonly=syntax.switch))
