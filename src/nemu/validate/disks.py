"""``--disk``."""

from __future__ import annotations

import os
import stat

from nemu.config.disk import DiskConfig
from nemu.errors import ConfigError
from nemu.validate import paths

SECTOR = 512  # bytes (virtio 1.2, 5.2.4: capacity is in 512-byte sectors)


def check(disks: tuple[DiskConfig, ...]) -> None:
    """Raise ConfigError for the first disk that cannot work."""
    for disk in disks:
        _check_disk(disk)
    _check_shared(disks)


def _check_disk(disk: DiskConfig) -> None:
    found = paths.image("--disk", disk.path, disk.readonly)
    if stat.S_ISREG(found.st_mode) and (found.st_size == 0 or found.st_size % SECTOR):
        raise ConfigError(
            "--disk",
            disk.path,
            f"has {found.st_size} bytes, must be a raw image of whole {SECTOR}-byte sectors",
        )


def _check_shared(disks: tuple[DiskConfig, ...]) -> None:
    seen: dict[tuple[int, ...], DiskConfig] = {}
    for disk in disks:
        found = os.stat(disk.path)
        block = stat.S_ISBLK(found.st_mode)
        identity = (found.st_rdev,) if block else (found.st_dev, found.st_ino)
        first = seen.setdefault(identity, disk)
        if first is not disk and not (first.readonly and disk.readonly):
            raise ConfigError("--disk", disk.path, "is given twice; this needs readonly=on for both")
