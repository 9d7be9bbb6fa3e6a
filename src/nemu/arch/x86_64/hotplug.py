"""The hot-plug controllers of the x86-64 machine: one page and some AML for each kind that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nemu.acpi import dsdt
from nemu.arch.x86_64 import acpi, layout
from nemu.devices.ged import Event
from nemu.devices.hotplug import HotplugController, memory_device
from nemu.kvm.slots import HostPages

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.interfaces import BusHandler, Pages
    from nemu.machine import Machine

PCI_DEVICES = 32  # of bus 0; 0 is the host bridge


class Hotplug:
    """Makes the controllers, joins them to the machine's slots and gives what ACPI has to say of them.

    ``add`` puts a page of registers on the bus, ``raise_event`` is the generic event device's.
    """

    def __init__(
        self,
        machine: Machine,
        config: MachineConfig,
        add: Callable[[str, int, BusHandler, Pages], None],
        raise_event: Callable[[Event], None],
    ) -> None:
        self._machine = machine
        self._add = add
        self._raise_event = raise_event
        self._controllers: dict[Event, HotplugController] = {}
        self.terms: list[bytes] = []
        if config.can_plug("cpu"):
            self._add_cpus(config.cpus.maximum)
        else:
            self.terms.append(dsdt.processors(config.cpus.present))
        if config.can_plug("memory"):
            self._add_memory(config.memory.slots)
        if config.can_plug("pci"):
            self._add_pci()

    @property
    def handlers(self) -> Mapping[Event, bytes]:
        """What ``_EVT`` does for each event."""
        return {event: controller.scan for event, controller in self._controllers.items()}

    def _add_cpus(self, count: int) -> None:
        cpus = self._machine.cpus
        targets = {number: f"\\_SB.{dsdt.processor_name(number)}" for number in range(count)}
        cpus.slots = controller = self._controller(Event.CPU, layout.CPU_HOTPLUG, targets, cpus.ejected)
        self.terms += [controller.aml(), acpi.hotplug_processors(controller, count)]

    def _add_memory(self, count: int) -> None:
        dimms = self._machine.dimms
        names = {slot: f"M{slot:03X}" for slot in range(count)}
        targets = {slot: f"\\_SB.{name}" for slot, name in names.items()}
        dimms.slots = controller = self._controller(
            Event.MEMORY, layout.MEMORY_HOTPLUG, targets, dimms.ejected
        )
        self.terms.append(controller.aml())
        self.terms += [
            memory_device(controller, slot, name, layout.MEMORY_HOTPLUG) for slot, name in names.items()
        ]

    def _add_pci(self) -> None:
        pci = self._machine.pci
        targets = {slot: f"\\_SB.PCI0.{dsdt.slot_name(slot)}" for slot in range(1, PCI_DEVICES)}
        pci.slots = controller = self._controller(Event.PCI, layout.PCI_HOTPLUG, targets, pci.ejected)
        self.terms += [controller.aml(), dsdt.pci_slots(controller, targets)]

    def _controller(
        self, event: Event, gpa: int, targets: Mapping[int, str], ejected: Callable[[int], None]
    ) -> HotplugController:
        pages = HostPages(layout.PAGE_SIZE)
        controller = HotplugController(
            f"PLG{event.bit_length() - 1}",
            pages,
            gpa=gpa,
            targets=targets,
            notify=lambda: self._raise_event(event),
            ejected=ejected,
            reported=lambda ost: self._machine.reported(str(event.name), ost),
        )
        self._add(f"hotplug-{str(event.name).lower()}", gpa, controller, pages)
        self._controllers[event] = controller
        return controller
