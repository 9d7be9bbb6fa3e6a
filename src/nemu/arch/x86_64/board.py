"""The x86-64 board of ``virt``: CPUs, interrupt controllers and platform registers, and how it boots.

``build`` creates one for a machine and calls its methods from top to bottom; nothing else of x86 is
known there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from nemu.arch.x86_64 import acpi, layout, reset_vector, vcpu, vm
from nemu.arch.x86_64.clock import GuestClock
from nemu.arch.x86_64.cpuid import CpuModel
from nemu.arch.x86_64.hotplug import Hotplug
from nemu.arch.x86_64.ioapic import IoApic
from nemu.boot import loader
from nemu.devices import pstore
from nemu.devices.erst import ErrorRecordStore
from nemu.devices.ged import BUTTON_ONLY, GenericEventDevice
from nemu.devices.power import PowerControl
from nemu.devices.pvpanic import PanicEvent, PvPanic
from nemu.devices.serial import Serial
from nemu.errors import ConfigError
from nemu.interfaces import Window
from nemu.kvm.irq import MsiRoutes
from nemu.kvm.slots import HostPages
from nemu.machine import Machine, Outcome
from nemu.plug.cpus import CpuSlots

if TYPE_CHECKING:
    from nemu.backends.chardev import Chardev
    from nemu.bus.address_space import AddressSpace
    from nemu.config import MachineConfig
    from nemu.devices.watchdog import Sticky
    from nemu.interfaces import AmlSource, BusHandler, IrqLine, Pages
    from nemu.kvm.handles import System, Vcpu, Vm
    from nemu.kvm.slots import MemorySlots
    from nemu.kvm.vcpu import VcpuThread
    from nemu.memory import GuestRam

    AddDevice: TypeAlias = Callable[[str, int, BusHandler, Pages], None]

PAGE = layout.PAGE_SIZE
LAST_WORDS = 40  # lines of a panicking kernel's log that are kept
# What ends the machine when the watchdog runs out, by what the user asked for; "pause" and "none" do not.
WATCHDOG_OUTCOMES = {"reset": Outcome.RESET, "poweroff": Outcome.POWER_OFF, "panic": Outcome.WATCHDOG}


class Board:
    """What is x86-64 of ``machine``.  Raises HostError and ConfigError."""

    ecam = layout.ECAM
    ecam_size = layout.ECAM_SIZE

    def __init__(self, machine: Machine, config: MachineConfig, system: System) -> None:
        vm.require(system)
        self._machine = machine
        self._config = config
        self._cpu_model = CpuModel(system, config.cpus.maximum)
        self._aml: list[AmlSource] = []
        self._terms: list[bytes] = []
        self._tables: list[bytes] = []
        self._unfed = False
        self.ram_regions = layout.ram_regions(config.memory.size)
        self.physical_bits = self._cpu_model.physical_bits
        end = sum(self.ram_regions[-1])
        if end > 1 << self.physical_bits:
            limit = (1 << self.physical_bits) - layout.LOW_RAM_END >> 30
            problem = f"must be at most {limit}G: this CPU's guests have {self.physical_bits} address bits"
            raise ConfigError("--memory", f"{config.memory.size >> 20}M", problem)
        self.device_memory = layout.device_memory(config.memory.size, self.physical_bits)
        pci64 = layout.pci64_window(config.memory.size, self.physical_bits)
        self.apertures = ((layout.PCI32_START, layout.PCI32_END), pci64)

    @property
    def reserved(self) -> tuple[tuple[int, int], ...]:
        """(gpa, size) of what is not the bus's: RAM and device memory, the local APICs, KVM's pages for real
        mode."""
        kvm_pages = (layout.KVM_IDENTITY_MAP, 4 * PAGE)
        start, end = self.device_memory
        return (*self.ram_regions, (start, end - start), (layout.LAPIC, PAGE), kvm_pages)

    def create_irqchip(self, kvm_vm: Vm) -> MsiRoutes:
        """Before the first vCPU; gives the table for the devices' messages."""
        fixed = vm.create_irqchip(kvm_vm, self._config.irqchip)
        return MsiRoutes(kvm_vm, layout.GSI_MSI_BASE, fixed)

    def create_cpus(self, kvm_vm: Vm, thread: Callable[[int, Vcpu], VcpuThread]) -> CpuSlots:
        """The CPUs of the machine, none made yet; APIC ids are 0 to maximum - 1."""
        vcpus: list[Vcpu] = []  # every one ever made: KVM keeps them all
        power_on: dict[Vcpu, vcpu.PowerOnState] = {}

        def make(apic_id: int) -> Vcpu:
            new = kvm_vm.create_vcpu(apic_id)
            self._machine.at_close.append(new.close)
            self._cpu_model.apply(new, apic_id, vcpu.tsc_khz(new))
            vcpu.set_msrs(new)
            vcpus.append(new)
            if self._config.can_plug("cpu"):
                power_on[new] = vcpu.PowerOnState(new)
            return new

        def renew(old: Vcpu) -> None:
            power_on[old].restore(old)

        self._machine.clocks.append(GuestClock(kvm_vm, vcpus))
        self._machine.send_nmi = lambda: vcpu.inject_nmi(vcpus)
        maximum = self._config.cpus.maximum
        return CpuSlots(self._machine, maximum, make=make, renew=renew, thread=thread)

    def add_devices(
        self, kvm_vm: Vm, slots: MemorySlots, bus: AddressSpace, ports: AddressSpace, serial: Chardev | None
    ) -> None:
        """The platform registers, the IOAPIC and, if asked for, the serial port."""
        machine = self._machine
        slots.drop_writes([layout.LEGACY_PCI_ADDRESS_PORT], port=True)

        def add(name: str, gpa: int, handler: BusHandler, pages: Pages) -> None:
            bus.place(Window(name, PAGE, handler, pages), gpa)
            machine.devices.append((name, f"{gpa:#x}"))

        pages = HostPages(PAGE)
        power = PowerControl(
            pages,
            power_off=lambda: machine.finish(Outcome.POWER_OFF),
            reset=lambda: machine.finish(Outcome.RESET),
        )
        add("power", layout.POWER, power, pages)

        pages = HostPages(PAGE)
        panic = PvPanic(pages, gpa=layout.PVPANIC, report=self._panicked)
        add("pvpanic", layout.PVPANIC, panic, pages)

        pages, buffer = HostPages(PAGE), HostPages(layout.ERST_BUFFER_SIZE)
        slots.map_pages(buffer, layout.ERST_BUFFER, readonly=False)
        errors = ErrorRecordStore(pages, buffer, buffer_gpa=layout.ERST_BUFFER, report=self._error_recorded)
        add("erst", layout.ERST, errors, pages)

        lines = self._lines(kvm_vm, add, with_serial=serial is not None)
        pages = HostPages(PAGE)
        handlers = dict(BUTTON_ONLY)
        ged = GenericEventDevice(
            pages,
            lines[layout.GSI_GED],
            gpa=layout.GED,
            gsi=layout.GSI_GED,
            handlers=handlers,
        )
        add("ged", layout.GED, ged, pages)
        plugs = Hotplug(machine, self._config, add, ged.raise_event)
        handlers.update(plugs.handlers)
        self._terms = plugs.terms
        machine.power_button = ged.power_button

        self._aml += [panic, ged]
        if serial is not None:
            self._add_serial(ports, lines[layout.GSI_SERIAL], serial)

    def _lines(self, kvm_vm: Vm, add: AddDevice, *, with_serial: bool) -> dict[int, IrqLine]:
        """The wired interrupts by GSI, from the controller that was asked for."""
        gsis = [layout.GSI_GED, layout.GSI_SERIAL] if with_serial else [layout.GSI_GED]
        if self._config.irqchip == "kernel":
            return {gsi: vm.KernelPin(kvm_vm, gsi) for gsi in gsis}
        pages = HostPages(PAGE)
        ioapic = IoApic(pages, vm.msi_sender(kvm_vm), pins=len(gsis))
        add("ioapic", layout.IOAPIC, ioapic, pages)
        return {gsi: ioapic.line(gsi - layout.IOAPIC_GSI_BASE) for gsi in gsis}

    def _add_serial(self, ports: AddressSpace, line: IrqLine, chardev: Chardev) -> None:
        port = SerialConsole(chardev, line).port
        ports.place(Window("serial", layout.SERIAL_PORT_SIZE, port), layout.SERIAL_PORT)
        self._machine.devices.append(("serial", f"port {layout.SERIAL_PORT:#x}"))
        self._machine.at_close.append(chardev.detach)
        self._aml.append(port)

    def add_watchdog(self, bus: AddressSpace, sticky: Sticky) -> None:
        """The watchdog's registers and its table.  ``sticky`` is what the machines before left of it."""
        from nemu.devices.watchdog import Watchdog, table

        device = Watchdog(self._machine.loop, sticky, self._watchdog_expired)
        bus.place(Window("watchdog", PAGE, device), layout.WATCHDOG)
        self._machine.devices.append(("watchdog", f"{layout.WATCHDOG:#x}"))
        self._machine.at_close.append(device.close)
        self._machine.clocks.append(device)
        self._tables.append(table(layout.WATCHDOG))

    def _watchdog_expired(self) -> None:
        machine, action = self._machine, self._config.watchdog
        outcome = WATCHDOG_OUTCOMES.get(action)
        # QMP has no word for an end with another status.
        machine.emit("WATCHDOG", action="poweroff" if action == "panic" else action)
        if outcome is not Outcome.WATCHDOG and not self._unfed:  # that outcome is told at the end
            print(f"nemu: {Outcome.WATCHDOG.value} (action: {action})", file=sys.stderr)
        self._unfed = True
        if outcome:
            machine.finish(outcome)
        elif action == "pause" and machine.pause():
            machine.emit("STOP")

    def _panicked(self, events: PanicEvent) -> None:
        if events & PanicEvent.PANICKED:
            self._machine.finish(Outcome.PANIC)
        else:
            self._machine.emit("GUEST_CRASHLOADED", action="run")
            print("nemu: the guest panicked and starts its crash kernel", file=sys.stderr)

    def _error_recorded(self, record: bytes) -> None:
        """A kernel without a pvpanic driver says so too when it dies, and why."""
        log = pstore.panic_log(record)
        if log is not None:
            self._machine.last_words = log[-LAST_WORDS:]
            self._machine.finish(Outcome.PANIC)

    def boot(self, ram: GuestRam, first: Vcpu, initramfs: bytes) -> None:
        """Write the ACPI tables, load the kernel and put the first CPU at its entry.

        ``initramfs`` is an archive to go behind the initrd, b"" for none.
        """
        config = self._config
        ram.write(*reset_vector.image(acpi.POWER.reset, acpi.POWER.reset_value))
        gsi_base = 0 if config.irqchip == "kernel" else layout.IOAPIC_GSI_BASE
        rsdp = acpi.build(
            ram,
            cpus=self._machine.cpus.present,
            max_cpus=config.cpus.maximum,
            pci64=self.apertures[1],
            terms=self._terms,
            devices=self._aml,
            device_tables=self._tables,
            ioapic_gsi_base=gsi_base,
        )
        entry = loader.load(
            ram,
            kernel=config.kernel,
            initrd=config.initrd,
            extra=initramfs,
            cmdline=config.append,
            rsdp=rsdp,
        )
        vcpu.set_entry(first, entry)


class SerialConsole:
    """Joins the serial port to its character backend (backends.chardev.Frontend)."""

    def __init__(self, chardev: Chardev, line: IrqLine) -> None:
        self._chardev = chardev
        self.port = Serial(line, self._send, self.readable, port=layout.SERIAL_PORT, gsi=layout.GSI_SERIAL)
        chardev.attach(self)
        self.readable()

    def readable(self) -> None:
        if self.port.room:
            self.port.receive(self._chardev.read(self.port.room))

    def _send(self, data: bytes) -> None:
        # A 16550 has no flow control: what a full backend does not take is lost, as on a wire.
        self._chardev.write(memoryview(data))

    def writable(self) -> None:
        pass

    def changed(self) -> None:
        pass
