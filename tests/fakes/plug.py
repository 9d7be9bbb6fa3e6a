"""A QMP session on a machine whose slots are real, and a guest that a test plays."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

from fakes.bus import FakeBus
from fakes.pages import FakePages
from fakes.qmp import FakeSession
from fakes.router import FakeRouter
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.cpus import MIB, Cpus, Memory
from nemu.devices.hotplug import REGISTERS, HotplugController, Register
from nemu.interfaces import Ost
from nemu.machine import RunState
from nemu.memory import DeviceMemory, GuestRam
from nemu.pci.host import BUS_SIZE, HostBridge
from nemu.peripherals import Peripherals
from nemu.plug.cpus import CpuSlots
from nemu.plug.inventory import Inventory
from nemu.plug.memory import DimmSlots
from nemu.plug.pci import PciSlots
from nemu.virtio.pci import PAGES_SIZE, VirtioPci

CONFIG = MachineConfig(
    cpus=Cpus(1, 4),
    memory=Memory(256 * MIB, 1024 * MIB, 3),
    console=ChardevConfig("null"),
    hotplug=("cpu", "memory", "pci"),
)
ECAM, APERTURE = 0xE000_0000, (0x9000_0000, 0x9800_0000)


class FakeThread:
    """A vCPU's, which ends when ``loop`` turns."""

    def __init__(self) -> None:
        self.native_id = 1
        self.exits: Counter[str] = Counter()
        self.ended: Any = lambda: None

    def start(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def stop(self) -> None:
        self.ended()


class FakeMemorySlots:
    def __init__(self) -> None:
        self.regions: set[int] = set()

    def add_region(self, region: Any, *, readonly: bool = False) -> None:
        self.regions.add(region.gpa)

    def remove_region(self, region: Any) -> None:
        self.regions.remove(region.gpa)


class PlugSession(FakeSession):
    """``controllers`` are the registers that the guest sees, by kind."""

    def __init__(self, config: MachineConfig = CONFIG) -> None:
        super().__init__()
        self.config = config

        def emit(event: str, /, **data: Any) -> None:
            self.server.emit(event, data)

        self.peripherals: Any = Peripherals(config, self.loop, lambda: None, emit)  # type: ignore[arg-type]
        self.inventory = Inventory(config, self.peripherals, self.loop, emit)
        self.boot()

    def boot(self) -> None:
        """The next machine."""
        self.machine = machine = SimpleNamespace(
            loop=self.loop,
            lock=threading.RLock(),
            state=RunState.RUNNING,
            vcpus=[],
            retired_exits=Counter(),
            balloon=None,
            devices=[],
            ram=GuestRam([(0, MIB)]),
            slots=FakeMemorySlots(),
            device_memory=DeviceMemory(4 << 30, 64 << 30),
        )
        typed: Any = machine
        host = HostBridge(FakeBus(), FakePages(BUS_SIZE), ECAM, BUS_SIZE, (APERTURE,))
        machine.pci_functions = host.describe
        machine.cpus = CpuSlots(
            typed,
            self.config.cpus.maximum,
            make=lambda number: number,  # type: ignore[arg-type, return-value]
            renew=lambda vcpu: None,
            thread=lambda number, vcpu: FakeThread(),  # type: ignore[arg-type, return-value]
        )
        machine.dimms = DimmSlots(
            typed, self.config.memory.slots, self.config.memory.maximum - self.config.memory.size
        )
        machine.pci = PciSlots(
            typed,
            host,
            lambda device, slot: VirtioPci(
                device,
                host,
                slot,
                pages=FakePages(PAGES_SIZE),
                memory=machine.ram,
                loop=self.loop,
                router=FakeRouter(),
            ),
        )
        self.controllers = {
            kind: self._controller(kind, count, slots)
            for kind, count, slots in (
                ("CPU", self.config.cpus.maximum, machine.cpus),
                ("MEMORY", self.config.memory.slots, machine.dimms),
                ("PCI", 32, machine.pci),
            )
            if self.config.can_plug(kind.lower())
        }
        self.inventory.enter(typed)

    def _controller(self, kind: str, count: int, slots: Any) -> HotplugController:
        def reported(ost: Ost) -> None:
            self.machine.reported(kind, ost)

        slots.slots = HotplugController(
            "PLGX",
            FakePages(4096),
            gpa=0,
            targets={slot: f"S{slot}" for slot in range(count)},
            notify=lambda: None,
            ejected=slots.ejected,
            reported=reported,
        )
        found: HotplugController = slots.slots
        return found

    # --- the guest ------------------------------------------------------------------------------

    def event(self, kind: str) -> tuple[int, int] | None:
        """Take the oldest event: slot and notification."""
        controller = self.controllers[kind]
        value = controller.read(0, 4)
        controller.write(4, 4, value)
        return (value >> 8, value & 0xFF) if value else None

    def eject(self, kind: str, slot: int) -> None:
        """Let go of ``slot``."""
        self.controllers[kind].write(8, 4, slot)
        self.loop.settle()

    def report(self, kind: str, *values: int) -> None:
        """Evaluate ``_OST``: slot, event, status."""
        registers = (Register.OST_SLOT, Register.OST_EVENT, Register.OST_STATUS)
        for register, value in zip(registers, values, strict=True):
            self.controllers[kind].write(list(Register).index(register) * 4, 4, value)
        assert REGISTERS.size >= 24

    # --- the host ---------------------------------------------------------------------------------

    def reboot(self) -> None:
        self.end_machine()
        self.boot()

    def end_machine(self) -> None:
        self.machine.pci.close()
        self.machine.ram.close()
        self.peripherals.drain()
        self.inventory.leave()

    def close(self) -> None:
        self.end_machine()
        self.inventory.close()
        self.peripherals.close()
        self.server.close()


def held() -> tuple[list[str], int, int]:
    """The process's descriptors by target, its threads, its mappings of guest memory."""
    gc.collect()  # what earlier tests left
    fds = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))
    with open("/proc/self/maps", encoding="ascii") as file:
        mappings = sum("nemu-ram" in line for line in file)
    return [target.partition("[")[0] for target in fds], threading.active_count(), mappings


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
