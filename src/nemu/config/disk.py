"""``--disk``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

SERIAL_MAX = 20  # bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
QUEUES_MAX = 16


class DiskConfig(NamedTuple):
    """A virtio-blk disk on a raw image or a block device."""

    path: str
    readonly: bool = False
    serial: str = ""  # at most 20 bytes of ASCII (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
    queues: int = 0  # 0: one for each CPU, at most 4

    @classmethod
    def read(cls, value: object) -> DiskConfig:
        """From ``PATH[,readonly=on|off][,serial=TEXT][,queues=N]`` or a table with these keys."""
        if isinstance(value, str):
            path, *rest = syntax.properties(value)
            value = {"path": path, **pairs(rest)}
        return cls(
            **table(
                value,
                path=syntax.path,
                readonly=syntax.switch,
                serial=_serial,
                queues=syntax.integer(1, QUEUES_MAX),
            )
        )


def _serial(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII")
    if len(value) > SERIAL_MAX:
        raise ValueError(f"must have at most {SERIAL_MAX} characters")
    return value
