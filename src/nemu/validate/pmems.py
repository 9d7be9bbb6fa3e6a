"""``--pmem``."""

from __future__ import annotations

import stat

from nemu.config.pmem import ALIGNMENT, PmemConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(pmems: tuple[PmemConfig, ...]) -> None:
    """Raise ConfigError for the first persistent memory that cannot work."""
    for pmem in pmems:
        found = paths.image("--pmem", pmem.path, pmem.readonly)
        if stat.S_ISREG(found.st_mode) and (found.st_size == 0 or found.st_size % ALIGNMENT):
            size = -(-max(found.st_size, 1) // ALIGNMENT) * ALIGNMENT
            raise ConfigError(
                "--pmem",
                pmem.path,
                f"has {found.st_size} bytes, must be whole {ALIGNMENT >> 20} MiB (truncate -s {size} helps)",
            )
