"""A running machine: its vCPU threads, its devices, and the one reason why it ends.

A machine lives from power-on to power-off or reset.  A reboot is a new machine from the same
configuration and the same backends, so that nothing of the old one can survive in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from nemu.errors import HostError

if TYPE_CHECKING:
    from nemu.balloon import Balloon
    from nemu.bus.address_space import AddressSpace
    from nemu.kvm.slots import MemorySlots
    from nemu.kvm.vcpu import VcpuThread
    from nemu.loop import Loop
    from nemu.memory import DeviceMemory, GuestRam


class Outcome(Enum):
    """Why a machine ended."""

    POWER_OFF = "the guest powered off"
    RESET = "the guest reset the machine"
    PANIC = "the guest panicked"
    WATCHDOG = "the guest did not feed its watchdog"
    TIMEOUT = "the time was up"
    QUIT = "the user left"
    KILLED = "the user ended it"


class Machine:
    """Owned by ``build``, which adds the parts: ``vcpus``, ``power_button``, ``devices``, ``at_close``.

    ``ram``, ``slots`` and ``device_memory`` (addresses) are for devices that bring memory, or hand RAM to a
    data plane outside.

    ``memory_bus`` and ``port_bus`` count the accesses of the guest.  ``devices`` are (name,
    where it is), for reports; ``last_words`` is the end of the log of a kernel that panicked.
    ``checks`` raise the HostError that says best why the host has failed.
    """

    def __init__(self, lock: threading.RLock, loop: Loop) -> None:
        self.lock = lock
        self.loop = loop
        self.vcpus: list[VcpuThread] = []
        self.ram: GuestRam
        self.slots: MemorySlots
        self.device_memory: DeviceMemory
        self.memory_bus: AddressSpace
        self.port_bus: AddressSpace
        self.power_button: Callable[[], None] = lambda: None
        self.balloon: Balloon | None = None
        self.devices: list[tuple[str, str]] = []
        self.last_words: list[str] = []
        self.checks: list[Callable[[], None]] = []
        self.at_close: list[Callable[[], None]] = []
        self._end: Outcome | BaseException | None = None
        self._end_lock = threading.Lock()

    def run(self) -> Outcome:
        """Power on, and serve the guest until ``finish``; what a thread raised comes out here."""
        try:
            for vcpu in self.vcpus:
                vcpu.start()
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
