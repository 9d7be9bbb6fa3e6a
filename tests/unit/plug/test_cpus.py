"""CPUs come and go: threads, vCPUs that are used again, and what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.loop import FakeLoop
from nemu.machine import RunState
from nemu.plug import PlugError
from nemu.plug.cpus import CpuSlots


class FakeThread:
    def __init__(self, number: int) -> None:
        self.number = number
        self.exits = Counter({"mmio": 1})
        self.running = False
        self.stopped = False
        self.ended: Any = lambda: None

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.stopped = True

    def end(self) -> None:
        """The thread leaves KVM_RUN."""
        self.running = False
        self.ended()


class FakeSlots:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def occupy(self, slot: int, *, removable: bool = True) -> None:
        self.calls.append(("occupy" if removable else "fix", slot))

    def plug(self, slot: int) -> None:
        self.calls.append(("plug", slot))

    def request_removal(self, slot: int) -> None:
        self.calls.append(("request", slot))


class Wired:
    def __init__(self, present: int = 2, maximum: int = 4, *, hotplug: bool = True) -> None:
        self.loop = FakeLoop()
        self.machine = SimpleNamespace(
            loop=self.loop,
            vcpus=[],
            retired_exits=Counter(),
            lock=threading.RLock(),
            state=RunState.RUNNING,
        )
        self.made: list[int] = []
        self.renewed: list[str] = []
        self.removed: list[int] = []
        self.slots = FakeSlots()
        self.cpus = CpuSlots(
            self.machine,  # type: ignore[arg-type]
            maximum,
            make=self._make,
            renew=self.renewed.append,  # type: ignore[arg-type]
            thread=lambda number, vcpu: FakeThread(number),  # type: ignore[arg-type, return-value]
        )
        self.cpus.removed = self.removed.append
        if hotplug:
            self.cpus.slots = self.slots
        self.first: Any = self.cpus.start_with(range(present))

    def _make(self, number: int) -> Any:
        self.made.append(number)
        return f"vcpu{number}"

    def thread(self, number: int) -> FakeThread:
        found: FakeThread = next(one for one in self.machine.vcpus if one.number == number)
        return found

    def eject(self, number: int) -> None:
        thread = self.thread(number)
        self.cpus.ejected(number)
        thread.end()
        self.loop.settle()


def test_the_first_cpu_stays() -> None:
    wired = Wired()
    assert wired.first == "vcpu0"
    assert wired.slots.calls == [("fix", 0), ("occupy", 1)]
    with pytest.raises(PlugError, match="CPU 0 stays"):
        wired.cpus.request_removal(0)


def test_a_cpu_that_comes_runs_before_the_guest_is_told() -> None:
    wired = Wired()
    wired.cpus.plug(2)
    assert wired.thread(2).running
    assert wired.slots.calls[-1] == ("plug", 2)
    assert list(wired.cpus.present) == [0, 1, 2]


def test_a_cpu_that_was_removed_is_gone_when_its_thread_has_ended() -> None:
    wired = Wired()
    wired.cpus.request_removal(1)
    thread = wired.thread(1)
    wired.cpus.ejected(1)
    assert thread.stopped
    assert wired.removed == []
    with pytest.raises(PlugError, match="about to leave"):
        wired.cpus.plug(1)
    thread.end()
    wired.loop.settle()
    assert (wired.removed, list(wired.cpus.present)) == ([1], [0])
    assert wired.machine.retired_exits == {"mmio": 1}


def test_a_slot_is_used_again_with_the_same_vcpu() -> None:
    """KVM cannot destroy one, and has a limited number."""
    wired = Wired()
    for _ in range(200):
        wired.cpus.plug(3)
        wired.eject(3)
    assert wired.made == [0, 1, 3]
    assert len(wired.renewed) == 200
    assert len(wired.machine.vcpus) == 2


@pytest.mark.parametrize("number", [-1, 4, 1000])
def test_a_number_beyond_the_maximum_is_refused(number: int) -> None:
    wired = Wired()
    with pytest.raises(PlugError, match="room for 0 to 3"):
        wired.cpus.plug(number)
    assert wired.made == [0, 1]


def test_what_is_there_cannot_come_and_what_is_not_cannot_go() -> None:
    wired = Wired()
    with pytest.raises(PlugError, match="CPU 1 is there already"):
        wired.cpus.plug(1)
    with pytest.raises(PlugError, match="no CPU 3 to remove"):
        wired.cpus.request_removal(3)


def test_a_machine_without_slots_refuses_both() -> None:
    wired = Wired(hotplug=False)
    with pytest.raises(PlugError, match="no slots"):
        wired.cpus.plug(2)
    with pytest.raises(PlugError, match="no CPU"):
        wired.cpus.request_removal(1)
