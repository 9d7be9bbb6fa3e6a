"""CPUs that come and go.  KVM cannot destroy a vCPU: one that was removed waits for its slot's next use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from nemu.machine import RunState
from nemu.plug import PlugError

if TYPE_CHECKING:
    from nemu.kvm.handles import Vcpu
    from nemu.kvm.vcpu import VcpuThread
    from nemu.machine import Machine


class Slots(Protocol):
    """devices.hotplug.HotplugController, as far as it is needed here."""

    def occupy(self, slot: int, *, removable: bool = True) -> None: ...

    def plug(self, slot: int) -> None: ...

    def request_removal(self, slot: int) -> None: ...


class CpuSlots:
    """The CPUs of ``machine`` by number, up to ``maximum``.

    ``make`` creates a vCPU with its identity, ``renew`` makes one as new that has run before, ``thread``
    makes its thread.  ``leaving`` is told of each CPU that the guest has let go, ``removed`` when its thread
    has ended.
    """

    def __init__(
        self,
        machine: Machine,
        maximum: int,
        *,
        make: Callable[[int], Vcpu],
        renew: Callable[[Vcpu], None],
        thread: Callable[[int, Vcpu], VcpuThread],
    ) -> None:
        self._machine = machine
        self._make = make
        self._renew = renew
        self._thread = thread
        self._threads: dict[int, VcpuThread] = {}
        self._leaving: set[int] = set()
        self._vcpus: dict[int, Vcpu] = {}
        self.maximum = maximum
        self.slots: Slots | None = None
        self.leaving: Callable[[int], None] = lambda number: None
        self.removed: Callable[[int], None] = lambda number: None

    @property
    def present(self) -> dict[int, VcpuThread]:
        """The CPUs that are there, by number."""
        return dict(sorted(self._threads.items()))

    def start_with(self, numbers: Iterable[int]) -> Vcpu:
        """Make these CPUs, 0 among them, before the machine runs; gives the first."""
        for number in numbers:
            self._add(number)
            if self.slots:
                # CPU 0 has what Linux and firmware cannot move; nobody's guest lets it go.
                self.slots.occupy(number, removable=number > 0)
        return self._vcpus[0]

    def plug(self, number: int) -> None:
        """Add CPU ``number`` and tell the guest."""
        if self.slots is None:
            raise PlugError("this machine has no slots for more CPUs (--cpus N,max=M)")
        if not 0 <= number < self.maximum:
            raise PlugError(f"there is no CPU {number}: the machine has room for 0 to {self.maximum - 1}")
        if number in self._threads:
            leaving = " and about to leave" if number in self._leaving else ""
            raise PlugError(f"CPU {number} is there already{leaving}")
        thread = self._add(number)
        # A new one too: KVM does not find a local APIC that was made later until its state is set.
        self._renew(self._vcpus[number])
        if self._machine.state is not RunState.RUNNING:
            thread.pause()
        thread.start()
        self.slots.plug(number)

    def request_removal(self, number: int) -> None:
        """Ask the guest to let go of CPU ``number``."""
        if self.slots is None or number not in self._threads:
            raise PlugError(f"there is no CPU {number} to remove")
        if number == 0:
            raise PlugError("CPU 0 stays: the guest started on it")
        self.slots.request_removal(number)

    def ejected(self, number: int) -> None:
        """The guest has let go of it: its thread ends.  It may be the very thread that calls."""
        self._leaving.add(number)
        self.leaving(number)
        self._threads[number].ended = lambda: self._machine.loop.call_soon(lambda: self._gone(number))
        self._threads[number].stop()

    def _gone(self, number: int) -> None:
        self._leaving.discard(number)
        thread = self._threads.pop(number)
        self._machine.vcpus.remove(thread)
        self._machine.retired_exits.update(thread.exits)
        self.removed(number)

    def _add(self, number: int) -> VcpuThread:
        vcpu = self._vcpus.get(number) or self._make(number)
        self._vcpus[number] = vcpu
        thread = self._threads[number] = self._thread(number, vcpu)
        self._machine.vcpus.append(thread)
        return thread
