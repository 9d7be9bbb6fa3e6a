"""``--disk``: disk images, served here by virtio-blk or virtio-scsi, or by a vhost-user back end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.backends.disk import Disk
from nemu.interfaces import BlockInfo
from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.virtio.blk import VirtioBlk

if TYPE_CHECKING:
    from nemu.config.disk import DiskConfig
    from nemu.machine import Machine
    from nemu.vhost.user.storage import VhostUserDisk
    from nemu.virtio.device import VirtioDevice

# Request queues of a disk that asks for no number: more of them gain little with one worker pool.
DEFAULT_QUEUES = 4


class Disks(Peripheral):
    """Every disk of the machine."""

    def _open(self, run: Run) -> None:
        self._queues = min(run.config.cpus.present, DEFAULT_QUEUES)
        self._disks = [self._keep(self._open_disk(disk)) for disk in run.config.disks]

    def _open_disk(self, disk: DiskConfig) -> Disk | VhostUserDisk:
        if disk.in_process:
            return Disk(disk.path, disk.readonly)
        from nemu.vhost.user.storage import VhostUserDisk

        return VhostUserDisk(disk, self._queues, self._loop, warn)

    def blocks(self) -> Iterator[BlockInfo]:
        for number, (config, disk) in enumerate(zip(self._config.disks, self._disks, strict=True)):
            device = "virtio-scsi0" if config.bus == "scsi" else f"virtio-blk{number}"
            yield BlockInfo(f"disk{number}", device, disk.path, disk.size, disk.readonly)

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        scsi = []
        for number, (config, disk) in enumerate(zip(self._config.disks, self._disks, strict=True)):
            name = f"virtio-blk{number}"
            if isinstance(disk, Disk) and config.bus == "scsi":
                scsi.append((config, disk))
            elif isinstance(disk, Disk):
                queues = config.queues or self._queues
                yield VirtioBlk(name, disk, machine.lock, machine.loop, queues=queues, serial=config.serial)
            else:
                yield disk.device(name, machine.ram)
        if scsi:
            from nemu.peripherals.scsi import controller

            yield controller(scsi, machine, self._queues)

    def drain(self) -> None:
        for disk in self._disks:
            disk.drain()
