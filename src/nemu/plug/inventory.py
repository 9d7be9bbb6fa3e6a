"""What is in the machine, from one reboot to the next, and under which names management knows it.

A reboot builds a new machine: what was plugged in is there again, what was removed stays away.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nemu.plug import PlugError

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.config.net import NetConfig
    from nemu.interfaces import EventLoop, Ost
    from nemu.kvm.handles import Vcpu
    from nemu.machine import Machine
    from nemu.peripherals import Peripherals
    from nemu.peripherals.disks import Node
    from nemu.peripherals.kind import Peripheral
    from nemu.peripherals.nets import Port
    from nemu.peripherals.scsi import ScsiController, Unit
    from nemu.plug.memory import Dimm
    from nemu.scsi.bus import Address

# ACPI 6.5, 6.3.5: source events and status codes of _OST
_EJECTIONS = (3, 0x103)
_SUCCESS, _IN_PROGRESS = 0, 0x84
# Reports of a slot that are passed on between two requests of the host's: a guest may send any number.
REPORTS = 4
_SLOT_TYPES = {"CPU": "CPU", "MEMORY": "DIMM"}
PLUGGED = "/machine/peripheral/"
AT_START = "/machine/unattached/device[{}]"


class Module(NamedTuple):
    """A memory device: its name, that of its memory (in Stock), and the memory."""

    name: str
    memory: str
    dimm: Dimm


class Netdev(NamedTuple):
    """An open port of the host's network that a card may be put on."""

    config: NetConfig
    port: Port


@dataclass(slots=True)
class Stock:
    """Backends that management has made, by name; they are there until it takes them away."""

    memory: dict[str, Dimm] = field(default_factory=dict)
    entropy: dict[str, object] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    netdevs: dict[str, Netdev] = field(default_factory=dict)
    chardevs: dict[str, str] = field(default_factory=dict)  # name -> path of a socket

    def close(self) -> None:
        """Idempotent."""
        for dimm in self.memory.values():
            dimm.close()
        for node in self.nodes.values():
            node.close()
        for netdev in self.netdevs.values():
            netdev.port.close()
        for kind in (self.memory, self.nodes, self.netdevs):
            kind.clear()


class Inventory:
    """``cpus``: number -> name ("" for those of the start); ``modules``: memory devices by slot.

    All calls are made with the machine lock held.  ``emit(event, **data)`` tells management.
    """

    def __init__(
        self, config: MachineConfig, peripherals: Peripherals, loop: EventLoop, emit: Callable[..., None]
    ) -> None:
        self.cpus = dict.fromkeys(range(config.cpus.present), "")
        self.modules: dict[int, Module] = {}
        self.peripherals = peripherals
        self.stock = Stock()
        self._loop = loop
        self._emit = emit
        self._machine: Machine
        self._going: dict[int, str] = {}  # CPUs whose threads are about to end
        self._leaving: dict[int, Peripheral] = {}  # by slot; their I/O is about to end
        self._draining: dict[Unit, threading.Thread] = {}  # of SCSI buses; their I/O is about to end
        self._reports: Counter[tuple[str, int]] = Counter()

    # --- machines ---------------------------------------------------------------------------------

    def enter(self, machine: Machine) -> Vcpu:
        """Put everything into a new machine; gives its first CPU.  Raises ConfigError, HostError."""
        self._machine = machine
        machine.reported = self._reported
        machine.cpus.leaving, machine.cpus.removed = self._cpu_leaves, self._cpu_gone
        machine.dimms.removed = self._memory_gone
        machine.pci.leaving, machine.pci.removed = self._device_leaves, self._device_idle
        first = machine.cpus.start_with(sorted(self.cpus))
        for one in self.peripherals:
            device = one.device(machine)
            one.slot = machine.pci.start_with(device, one.slot, removable=one.REMOVABLE)
        for slot, module in self.modules.items():
            machine.dimms.start_with(slot, module.dimm)
        return first

    def leave(self) -> None:
        """The machine has ended, and no I/O is under way."""
        for slot, peripheral in list(self._leaving.items()):
            peripheral.drain()
            self._device_gone(slot, peripheral)
        for unit, thread in list(self._draining.items()):
            thread.join()
            self._unit_gone(unit)

    def close(self) -> None:
        """The run ends.  Idempotent."""
        self.leave()
        self.stock.close()

    # --- names ------------------------------------------------------------------------------------

    def names(self) -> Iterator[str]:
        """Every name that is taken."""
        yield from filter(None, (*self.cpus.values(), *self._going.values()))
        yield from (module.name for module in self.modules.values() if module.name)
        yield from (one.name for one in (*self.peripherals, *self._leaving.values()))
        yield from (block.device for block in self.peripherals.blocks())
        yield from (unit.name for unit in self._draining)

    def uses(self, backend: object) -> bool:
        """Whether a device is on ``backend``, or was and has I/O under way."""
        idle = all(unit.node is not backend for unit in self._draining)
        return not idle or any(one.uses(backend) for one in (*self.peripherals, *self._leaving.values()))

    def on_socket(self, path: str) -> bool:
        """Whether a device or a network port is on the back end that listens at ``path``."""
        sockets = [one.socket for one in (*self.peripherals, *self._leaving.values())]
        return path in sockets or any(one.config.socket == path for one in self.stock.netdevs.values())

    def uses_memory(self, name: str) -> bool:
        """Whether the memory of this name is plugged in."""
        return any(module.memory == name for module in self.modules.values())

    # --- what management asks for -----------------------------------------------------------------

    def plug_cpu(self, number: int, name: str) -> None:
        """Raises PlugError, as all of these, with nothing changed."""
        self._reports.pop(("CPU", number), None)
        self._machine.cpus.plug(number)
        self.cpus[number] = name

    def plug_memory(self, module: Module, slot: int | None = None) -> None:
        """Put ``module`` into ``slot``, or the first free one."""
        slot = self._machine.dimms.plug(module.dimm, slot)
        self._reports.pop(("MEMORY", slot), None)
        self.modules[slot] = module

    def plug_device(self, make: Callable[[], Peripheral], slot: int | None = None) -> str:
        """Put what ``make`` opens into ``slot``, or the first free one; gives its name."""
        slot = self._machine.pci.choose(slot)
        peripheral = make()
        device = None
        try:
            peripheral.ready()
            device = peripheral.device(self._machine)
            self._machine.pci.plug(device, slot)
        except BaseException:
            if device:
                device.close()
            peripheral.close()
            raise
        self._reports.pop(("PCI", slot), None)
        peripheral.slot = slot
        self.peripherals.add(peripheral)
        return peripheral.name

    def plug_unit(
        self, controller: ScsiController, address: Address, name: str, node: Node, serial: str
    ) -> None:
        """Put a raw disk on a SCSI bus."""
        from nemu.peripherals.scsi import Unit

        target, lun = address
        if address in controller.units:
            raise PlugError(f"there is a unit at target {target}, LUN {lun} already")
        controller.add(address, Unit(name or f"scsi-hd-{target}-{lun}", node, serial))

    def controllers(self) -> dict[str, ScsiController]:
        """The SCSI controllers by the names of their buses, as QEMU has them."""
        return {f"{one.name}.0": one for one in self.peripherals if hasattr(one, "units")}  # type: ignore[misc]

    def request_removal(self, name: str) -> bool:
        """Ask the guest to let go of what has this name or object path; False where there is none."""
        name = name.removeprefix(PLUGGED)
        for number, one in self.cpus.items():
            if name == (one or AT_START.format(number)):
                self._machine.cpus.request_removal(number)
                self._reports.pop(("CPU", number), None)
                return True
        for slot, module in self.modules.items():
            if name and module.name == name:
                self._machine.dimms.request_removal(slot)
                self._reports.pop(("MEMORY", slot), None)
                return True
        for peripheral in self.peripherals:
            if peripheral.name == name and peripheral.slot is not None:
                if not peripheral.REMOVABLE:
                    raise PlugError(f"Device '{name}' does not support hotplugging")
                self._machine.pci.request_removal(peripheral.slot)
                self._reports.pop(("PCI", peripheral.slot), None)
                return True
        if self._remove_unit(name):
            return True
        return name in self._going.values() or any(one.name == name for one in self._leaving.values())

    def _remove_unit(self, name: str) -> bool:
        """A unit of a SCSI bus goes at once, without asking the guest."""
        for controller in self.controllers().values():
            for address, unit in controller.units.items():
                if name and unit.name == name:  # those of the configuration have none, and stay
                    controller.remove(address)
                    # Not here: the jobs that are waited for want the machine lock.
                    thread = threading.Thread(
                        target=self._drain_unit, args=(unit,), name="drain", daemon=True
                    )
                    self._draining[unit] = thread
                    thread.start()
                    return True
        return any(unit.name == name for unit in self._draining)

    def _drain_unit(self, unit: Unit) -> None:
        unit.disk.drain()
        self._loop.call_soon(lambda: self._unit_gone(unit))

    def _unit_gone(self, unit: Unit) -> None:
        if self._draining.pop(unit, None):
            self._tell_gone(unit.name)

    # --- what the guest does ----------------------------------------------------------------------

    def _cpu_leaves(self, number: int) -> None:
        self._going[number] = self.cpus.pop(number, "")

    def _cpu_gone(self, number: int) -> None:
        self._tell_gone(self._going.pop(number, ""), AT_START.format(number))

    def _memory_gone(self, slot: int, dimm: Dimm) -> None:
        self._tell_gone(self.modules.pop(slot).name)

    def _device_leaves(self, slot: int) -> None:
        for one in list(self.peripherals):
            if one.slot == slot:
                self.peripherals.take(one)
                self._leaving[slot] = one

    def _device_idle(self, slot: int) -> None:
        if peripheral := self._leaving.get(slot):
            # It may be a worker thread of its own that calls.
            self._loop.call_soon(lambda: self._device_gone(slot, peripheral))

    def _device_gone(self, slot: int, peripheral: Peripheral) -> None:
        if self._leaving.get(slot) is peripheral:
            del self._leaving[slot]
            peripheral.close()
            self._tell_gone(peripheral.name)

    def _tell_gone(self, name: str, otherwise: str = "") -> None:
        told = {"device": name} if name else {}
        self._emit("DEVICE_DELETED", **told, path=f"{PLUGGED}{name}" if name else otherwise)

    def _reported(self, kind: str, ost: Ost) -> None:
        self._reports[kind, ost.slot] += 1
        if self._reports[kind, ost.slot] > REPORTS:
            return
        name = self._name_at(kind, ost.slot)
        told: dict[str, Any] = {"device": name} if name else {}
        if kind in _SLOT_TYPES:
            info = {"slot": str(ost.slot), "slot-type": _SLOT_TYPES[kind]}
            self._emit("ACPI_DEVICE_OST", info={**told, **info, "source": ost.event, "status": ost.status})
        if ost.event in _EJECTIONS and ost.status not in (_SUCCESS, _IN_PROGRESS):
            path = f"{PLUGGED}{name}" if name else AT_START.format(ost.slot)
            self._emit("DEVICE_UNPLUG_GUEST_ERROR", **told, path=path)
            if kind == "MEMORY":
                self._emit("MEM_UNPLUG_ERROR", device=name, msg="the guest uses this memory")

    def _name_at(self, kind: str, slot: int) -> str:
        match kind:
            case "CPU":
                return self.cpus.get(slot, "")
            case "MEMORY":
                return self.modules[slot].name if slot in self.modules else ""
        return next((one.name for one in self.peripherals if one.slot == slot), "")
