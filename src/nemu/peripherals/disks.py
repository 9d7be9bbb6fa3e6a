"""``--disk``: disk images, served here by virtio-blk or virtio-scsi, or by a vhost-user back end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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


def default_queues(run: Run) -> int:
    """Request queues where nobody asks for a number."""
    return min(run.config.cpus.present, DEFAULT_QUEUES)


def open_disk(config: DiskConfig, run: Run) -> Disk | VhostUserDisk:
    """The image, or what serves it.  Raises ConfigError, HostError."""
    if config.in_process:
        return Disk(config.path, config.readonly)
    from nemu.vhost.user.storage import VhostUserDisk

    return VhostUserDisk(config, default_queues(run), run.loop, warn)


class BlockDevice(Peripheral):
    """One disk with a device of its own; ``backend`` may be what ``open_disk`` gave."""

    PREFIX = "virtio-blk"
    REMOVABLE = True

    @classmethod
    def at_start(cls, run: Run, config: Any) -> Iterator[Any]:
        """Those with a device of their own, then the controller of the others."""
        for number, disk in enumerate(config):
            if disk.bus != "scsi":
                yield cls(run, disk, number)
        if any(disk.bus == "scsi" for disk in config):
            from nemu.peripherals.scsi import ScsiController

            yield ScsiController(run, config)

    def _open(self, run: Run) -> None:
        self._disk: Disk | VhostUserDisk = self.backend or self._keep(open_disk(self._config, run))
        self._queues = self._config.queues or default_queues(run)

    def blocks(self) -> Iterator[BlockInfo]:
        yield BlockInfo(self.name, self._disk.path, self._disk.size, self._disk.readonly)

    def device(self, machine: Machine) -> VirtioDevice:
        if not isinstance(self._disk, Disk):
            return self._disk.device(self.name, machine.ram)
        return VirtioBlk(
            self.name,
            self._disk,
            machine.lock,
            machine.loop,
            queues=self._queues,
            serial=self._config.serial,
        )

    def drain(self) -> None:
        self._disk.drain()
