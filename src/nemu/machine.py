"""A running machine: its vCPU threads, its devices, and the one reason why it ends.

A machine lives from power-on to power-off or reset.  A reboot is a new machine from the same
configuration and the same backends, so that nothing of the old one can survive in it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from nemu.errors import HostError

if TYPE_CHECKING:
    from nemu.balloon import Balloon
    from nemu.bus.address_space import AddressSpace
    from nemu.interfaces import Clock, Ost, PciFunctionInfo
    from nemu.kvm.slots import MemorySlots
    from nemu.kvm.vcpu import VcpuThread
    from nemu.loop import Loop
    from nemu.memory import DeviceMemory, GuestRam
    from nemu.plug.cpus import CpuSlots
    from nemu.plug.memory import DimmSlots
    from nemu.plug.pci import PciSlots


class Outcome(Enum):
    """Why a machine ended."""

    POWER_OFF = "the guest powered off"
    RESET = "the guest reset the machine"
    PANIC = "the guest panicked"
    WATCHDOG = "the guest did not feed its watchdog"
    TIMEOUT = "the time was up"
    QUIT = "the user left"
    KILLED = "the user ended it"
    QMP_QUIT = "a QMP client ended it"
    QMP_RESET = "a QMP client reset it"


class RunState(Enum):
    """What its CPUs do, under QEMU's names."""

    PRELAUNCH = "prelaunch"  # they wait to begin
    RUNNING = "running"
    PAUSED = "paused"


def unheard(event: str, /, **data: Any) -> None:
    """``emit`` where nobody listens."""


class Machine:
    """Owned by ``build``, which adds the parts: ``vcpus``, ``power_button``, ``devices``, ``at_close``.

    ``emit(event, **data)`` tells management clients of a QMP event, with the machine lock held.
    ``ram``, ``slots`` and ``device_memory`` (addresses) are for devices that bring memory, or hand RAM to a
    data plane outside.

    ``memory_bus`` and ``port_bus`` count the accesses of the guest.  ``devices`` are (name,
    where it is), for reports; ``last_words`` is the end of the log of a kernel that panicked.
    ``checks`` raise the HostError that says best why the host has failed.  ``clocks`` count the guest's
    time, and stand still with it.
    """

    def __init__(self, lock: threading.RLock, loop: Loop) -> None:
        self.lock = lock
        self.loop = loop
        self.vcpus: list[VcpuThread] = []
        self.retired_exits: Counter[str] = Counter()  # of vCPUs that were removed
        self.cpus: CpuSlots
        self.dimms: DimmSlots
        self.pci: PciSlots
        self.ram: GuestRam
        self.slots: MemorySlots
        self.device_memory: DeviceMemory
        self.memory_bus: AddressSpace
        self.port_bus: AddressSpace
        self.power_button: Callable[[], None] = lambda: None
        self.send_nmi: Callable[[], None] = lambda: None  # while no CPU is in the guest
        self.clocks: list[Clock] = []
        self.emit: Callable[..., None] = unheard
        self.pci_functions: Callable[[], list[PciFunctionInfo]] = list
        self.balloon: Balloon | None = None
        self.devices: list[tuple[str, str]] = []
        self.last_words: list[str] = []
        self.reported: Callable[[str, Ost], None] = lambda kind, ost: None
        self.checks: list[Callable[[], None]] = []
        self.at_close: list[Callable[[], None]] = []
        self._end: Outcome | BaseException | None = None
        self._end_lock = threading.Lock()
        self.state = RunState.PRELAUNCH

    def run(self, *, paused: bool = False) -> Outcome:
        """Power on, and serve the guest until ``finish``; what a thread raised comes out here.

        With ``paused`` its CPUs wait for ``resume`` before their first instruction.
        """
        try:
            for vcpu in self.vcpus:
                if paused:
                    vcpu.pause()
                vcpu.start()
            if not paused:
                self.state = RunState.RUNNING
            while self._end is None:  # a late stop of the machine before may end a run of the loop
                self.loop.run()
        finally:
            self._stop_vcpus()
        if isinstance(self._end, HostError):
            for check in self.checks:
                check()
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end

    def pause(self) -> bool:
        """Hold its CPUs and clocks; False where they do not run.  Called with the machine lock held.

        Devices finish what the driver has given them; the guest sees it when it goes on.
        """
        if self.state is not RunState.RUNNING:
            return False
        self._hold_vcpus()
        for clock in self.clocks:
            clock.stop()
        self.state = RunState.PAUSED
        return True

    def resume(self) -> bool:
        """Let its CPUs go on, or begin; False where they run.  Called with the machine lock held."""
        if self.state is RunState.RUNNING:
            return False
        for clock in self.clocks if self.state is RunState.PAUSED else ():
            clock.start()
        self.state = RunState.RUNNING
        self._let_vcpus_go()
        return True

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to every CPU.  Called with the machine lock held."""
        # KVM answers no call on a vCPU while that is in the guest.
        self._hold_vcpus()
        self.send_nmi()
        if self.state is RunState.RUNNING:
            self._let_vcpus_go()

    def _hold_vcpus(self) -> None:
        for vcpu in self.vcpus:
            vcpu.pause()
        for vcpu in self.vcpus:
            vcpu.wait_paused()

    def _let_vcpus_go(self) -> None:
        for vcpu in self.vcpus:
            vcpu.resume()

    def finish(self, outcome: Outcome) -> None:
        """End the machine, for the first reason that is given.  From any thread."""
        self._finish(outcome)

    def fail(self, error: BaseException) -> None:
        """End the machine because of ``error``, unless it has ended already.  From any thread."""
        self._finish(error)

    def _finish(self, end: Outcome | BaseException) -> None:
        with self._end_lock:
            if self._end is not None:
                return
            self._end = end
        # At once, or the guest would run on behind its own power-off or reset.
        for vcpu in self.vcpus:
            vcpu.stop()
        self.loop.stop()

    def close(self) -> None:
        """Give everything back, the last part first."""
        with self.lock:
            while self.at_close:
                self.at_close.pop()()

    def _stop_vcpus(self) -> None:
        for vcpu in self.vcpus:
            vcpu.stop()
        for vcpu in self.vcpus:
            if vcpu.ident is not None:
                vcpu.join()
