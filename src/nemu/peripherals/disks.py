"""``--disk``: disk images, served here by virtio-blk or virtio-scsi, or by a vhost-user back end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Node(NamedTuple):
    """An open disk, or what serves it; ``name`` is management's, or tells its place in the configuration."""

    name: str
    config: DiskConfig
    disk: Disk | VhostUserDisk

    def info(self, device: str) -> BlockInfo:
        """The disk behind the device of that name."""
        disk, kind = self.disk, self.config.format or "raw"
        return BlockInfo(self.name, device, disk.path, disk.size, disk.readonly, kind)

    def close(self) -> None:
        self.disk.close()


def open_node(config: DiskConfig, run: Run, name: str) -> Node:
    """Raises ConfigError, HostError."""
    if config.in_process:
        return Node(name, config, Disk(config.path, config.readonly))
    from nemu.vhost.user.storage import VhostUserDisk

    return Node(name, config, VhostUserDisk(config, default_queues(run), run.loop, warn))


class BlockDevice(Peripheral):
    """One disk with a device of its own; ``backend`` may be a Node."""

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
        self._node: Node = self.backend or self._keep(open_node(self._config, run, f"disk{self._number}"))
        self._disk = self._node.disk
        self._queues = self._config.queues or default_queues(run)

    def blocks(self) -> Iterator[BlockInfo]:
        yield self._node.info(self.name)

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
