"""``--disk ...,bus=scsi``: all of them are units of one virtio-scsi controller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from nemu.backends.disk import Disk
from nemu.config.disk import scsi_addresses
from nemu.interfaces import BlockInfo
from nemu.peripherals.disks import Node, default_queues, open_node
from nemu.peripherals.kind import Peripheral, Run
from nemu.scsi.bus import Address, Bus
from nemu.scsi.disk import ScsiDisk
from nemu.virtio.scsi import VirtioScsi

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Unit(NamedTuple):
    """A disk on the bus; ``name`` is management's, "" where it is one of the configuration."""

    name: str
    node: Node
    serial: str

    @property
    def disk(self) -> Disk:
        assert isinstance(self.node.disk, Disk)
        return self.node.disk


class ScsiController(Peripheral):
    """The controller with every SCSI disk of ``config``, all disks of the machine."""

    PREFIX = "virtio-scsi"

    def _open(self, run: Run) -> None:
        self._queues = default_queues(run)
        self._controller: VirtioScsi | None = None
        self.units: dict[Address, Unit] = {}
        scsi = [(number, disk) for number, disk in enumerate(self._config) if disk.bus == "scsi"]
        addresses = scsi_addresses(self._config)
        for (number, disk), address in zip(scsi, addresses, strict=True):
            node = self._keep(open_node(disk, run, f"disk{number}"))
            self.units[address] = Unit("", node, disk.serial)

    def add(self, address: Address, unit: Unit) -> None:
        """Plug ``unit``, whose node stays the caller's, into the free ``address``."""
        self.units[address] = unit
        if self._controller:
            self._controller.add(address, _scsi_disk(address, unit))

    def remove(self, address: Address) -> Unit:
        """Unplug a unit, without asking the guest; I/O in flight still ends."""
        if self._controller:
            self._controller.remove(address)
        return self.units.pop(address)

    def uses(self, backend: object) -> bool:
        return any(unit.node is backend for unit in self.units.values())

    def blocks(self) -> Iterator[BlockInfo]:
        for unit in self.units.values():
            yield unit.node.info(unit.name or self.name)

    def device(self, machine: Machine) -> VirtioDevice:
        bus = Bus()
        for address, unit in self.units.items():
            bus.add(address, _scsi_disk(address, unit))
        self._controller = VirtioScsi(self.name, bus, machine.lock, machine.loop, queues=self._queues)
        return self._controller

    def drain(self) -> None:
        self._controller = None
        for unit in self.units.values():
            unit.disk.drain()


def _scsi_disk(address: Address, unit: Unit) -> ScsiDisk:
    return ScsiDisk(unit.disk, f"{address[0]}:{address[1]}", unit.serial)
