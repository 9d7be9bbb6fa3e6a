"""``--disk ...,bus=scsi``: all of them are units of one virtio-scsi controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemu.config.disk import scsi_addresses
from nemu.scsi.bus import Bus
from nemu.scsi.disk import ScsiDisk
from nemu.virtio.scsi import VirtioScsi

if TYPE_CHECKING:
    from nemu.backends.disk import Disk
    from nemu.config.disk import DiskConfig
    from nemu.machine import Machine


def controller(disks: Sequence[tuple[DiskConfig, Disk]], machine: Machine, queues: int) -> VirtioScsi:
    """A new controller with a unit for each of ``disks``, open already."""
    bus = Bus()
    addresses = scsi_addresses([config for config, _ in disks])
    for (config, disk), (target, lun) in zip(disks, addresses, strict=True):
        bus.add((target, lun), ScsiDisk(disk, f"{target}:{lun}", config.serial))
    return VirtioScsi("virtio-scsi0", bus, machine.lock, machine.loop, queues=queues)
