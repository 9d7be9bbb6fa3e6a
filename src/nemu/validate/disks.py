"""``--disk``."""

from __future__ import annotations

import os
import stat

from nemu.config.disk import DiskConfig
from nemu.errors import ConfigError
from nemu.validate import paths

SECTOR = 512  # bytes (virtio 1.2, 5.2.4: capacity is in 512-byte sectors)
QCOW2_MAGIC = b"QFI\xfb"  # QEMU, docs/interop/qcow2.txt


def check(disks: tuple[DiskConfig, ...]) -> None:
    """Raise ConfigError for the first disk that cannot work."""
    for disk in disks:
        if disk.socket:
            paths.listening("--disk", f"vhost-user={disk.socket}", disk.socket)
        else:
            _check_image(disk)
    _check_shared(disks)


def _check_image(disk: DiskConfig) -> None:
    found = paths.readable("--disk", disk.path)
    regular = stat.S_ISREG(found.st_mode)
    if not (regular or stat.S_ISBLK(found.st_mode)):
        raise ConfigError("--disk", disk.path, "must be an image or a block device")
    if not disk.readonly and not os.access(disk.path, os.W_OK):
        raise ConfigError("--disk", disk.path, "cannot be written; add ,readonly=on")
    if disk.format != "qcow2" and regular and (found.st_size == 0 or found.st_size % SECTOR):
        raise ConfigError(
            "--disk",
            disk.path,
            f"has {found.st_size} bytes, must be a raw image of whole {SECTOR}-byte sectors",
        )
    _check_format(disk)


def _check_format(disk: DiskConfig) -> None:
    with open(disk.path, "rb") as file:
        qcow2 = file.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC
    if disk.format == "qcow2" and not qcow2:
        raise ConfigError("--disk", disk.path, "is no qcow2 image; add ,format=raw if it is a raw one")
    if qcow2 and not disk.format:
        raise ConfigError(
            "--disk",
            disk.path,
            "begins as a qcow2 image; add ,format=qcow2, or ,format=raw if a guest wrote that into a raw one",
        )


def _check_shared(disks: tuple[DiskConfig, ...]) -> None:
    seen: dict[tuple[object, ...], DiskConfig] = {}
    for disk in disks:
        found = os.stat(disk.socket or disk.path)
        block = stat.S_ISBLK(found.st_mode)
        identity = (found.st_rdev,) if block else (found.st_dev, found.st_ino)
        first = seen.setdefault(identity, disk)
        if first is not disk and disk.socket:
            value = f"vhost-user={disk.socket}"
            raise ConfigError("--disk", value, "is given twice; a back end serves one device")
        if first is not disk and not (first.readonly and disk.readonly):
            raise ConfigError("--disk", disk.path, "is given twice; this needs readonly=on for both")
