"""``--disk``: virtio-blk on disk images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.backends.disk import Disk
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.blk import VirtioBlk

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice

# Request queues of a disk that asks for no number: more of them gain little with one worker pool.
DEFAULT_QUEUES = 4


class Disks(Peripheral):
    """Every disk of the machine."""

    def _open(self, run: Run) -> None:
        self._disks = [self._keep(Disk(disk.path, disk.readonly)) for disk in run.config.disks]

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        for number, (config, disk) in enumerate(zip(self._config.disks, self._disks, strict=True)):
            yield VirtioBlk(
                f"virtio-blk{number}",
                disk,
                machine.lock,
                machine.loop,
                queues=config.queues or min(self._config.cpus.present, DEFAULT_QUEUES),
                serial=config.serial,
            )

    def drain(self) -> None:
        for disk in self._disks:
            disk.drain()
