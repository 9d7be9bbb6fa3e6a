"""How a machine ends: once, for the first reason, with every thread gone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from fakes.vcpu import Exit, FakeVcpu
from nemu.bus.address_space import AddressSpace
from nemu.errors import GuestCrashError, HostError
from nemu.kvm import abi
from nemu.kvm.vcpu import KICK_SIGNAL, VcpuThread
from nemu.loop import Loop
from nemu.machine import Machine, Outcome, RunState

Build = Callable[..., Machine]


@pytest.fixture(autouse=True)
def _harmless_kick() -> Iterator[None]:
    before = signal.signal(KICK_SIGNAL, lambda *_: None)
    yield
    signal.signal(KICK_SIGNAL, before)


@pytest.fixture
def loop() -> Iterator[tuple[Loop, threading.RLock]]:
    lock = threading.RLock()
    one = Loop(lock)
    yield one, lock
    one.close()


@pytest.fixture
def build(loop: tuple[Loop, threading.RLock]) -> Build:
    def make(*scripts: tuple[Exit, ...]) -> Machine:
        machine = Machine(loop[1], loop[0])
        machine.memory_bus = machine.port_bus = AddressSpace()
        for index, script in enumerate(scripts):
            thread = VcpuThread(
                index,
                FakeVcpu(*script),  # type: ignore[arg-type]
                memory_bus=machine.memory_bus,
                port_bus=machine.port_bus,
                lock=loop[1],
                failed=machine.fail,
            )
            machine.vcpus.append(thread)
        return machine

    return make


def triple_fault(vcpu: FakeVcpu) -> bool:
    vcpu.run.exit_reason = abi.KVM_EXIT_SHUTDOWN
    return True


def threads_of(machine: Machine) -> list[bool]:
    return [vcpu.is_alive() for vcpu in machine.vcpus]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_outcome_is_what_ended_it(build: Build, outcome: Outcome) -> None:
    machine = build((), ())
    machine.loop.call_soon(lambda: machine.finish(outcome))
    assert machine.run() is outcome
    assert threads_of(machine) == [False, False]


def test_a_guest_that_powers_off_before_the_loop_runs_is_not_missed(build: Build) -> None:
    for _ in range(20):
        machine = build()
        machine.finish(Outcome.POWER_OFF)
        assert machine.run() is Outcome.POWER_OFF


def test_a_late_stop_of_the_machine_before_does_not_end_the_next(build: Build) -> None:
    first = build()
    first.loop.call_soon(lambda: first.finish(Outcome.RESET))
    assert first.run() is Outcome.RESET
    first.loop.stop()
    second = build(())
    second.loop.call_later(0.05, lambda: second.finish(Outcome.POWER_OFF))
    start = time.monotonic()
    assert second.run() is Outcome.POWER_OFF
    assert time.monotonic() - start >= 0.05


def test_the_first_reason_counts(build: Build) -> None:
    machine = build(())
    machine.finish(Outcome.POWER_OFF)
    machine.finish(Outcome.RESET)
    machine.fail(HostError("too late"))
    assert machine.run() is Outcome.POWER_OFF


def test_the_guest_does_not_run_on_behind_its_own_end(build: Build) -> None:
    ran_on: list[str] = []

    def power_off(_: FakeVcpu) -> bool:
        machine.finish(Outcome.POWER_OFF)
        return False

    def more(_: FakeVcpu) -> bool:
        ran_on.append("more")
        return False

    for _ in range(10):
        machine = build((power_off, more), ())
        assert machine.run() is Outcome.POWER_OFF
    assert ran_on == []


def test_many_cpus_that_end_it_at_once_give_one_outcome(build: Build) -> None:
    def power_off(_: FakeVcpu) -> bool:
        machine.finish(Outcome.POWER_OFF)
        return False

    def reset(_: FakeVcpu) -> bool:
        machine.finish(Outcome.RESET)
        return False

    for _ in range(10):
        machine = build(*([(power_off,), (reset,), (triple_fault,)] * 4))
        with suppress(GuestCrashError):
            assert machine.run() in (Outcome.POWER_OFF, Outcome.RESET)
        assert not any(threads_of(machine))


def test_what_a_cpu_thread_raised_comes_out_of_run(build: Build) -> None:
    machine = build((), (triple_fault,))
    with pytest.raises(GuestCrashError, match="triple fault"):
        machine.run()
    assert threads_of(machine) == [False, False]


def test_what_a_loop_callback_raised_ends_it_as_well(build: Build) -> None:
    machine = build(())

    def fail() -> None:
        raise HostError("from the loop")

    machine.loop.call_soon(fail)
    with pytest.raises(HostError, match="from the loop"):
        machine.run()
    assert threads_of(machine) == [False]


def test_a_failure_of_the_host_is_explained_by_who_knows_better(build: Build) -> None:
    def explain() -> None:
        raise HostError("the file is gone")

    for end, text in ((HostError("EFAULT"), "the file is gone"), (GuestCrashError("crash"), "crash")):
        machine = build()
        machine.checks += [lambda: None, explain]
        machine.fail(end)
        with pytest.raises(type(end), match=text):
            machine.run()


def test_it_is_taken_apart_from_the_last_part_to_the_first(build: Build) -> None:
    machine = build()
    order: list[int] = []
    for number in range(3):
        machine.at_close.append(lambda number=number: order.append(number))  # type: ignore[misc]
    machine.close()
    machine.close()
    assert order == [2, 1, 0]


class Clock:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def stop(self) -> None:
        self.calls.append("stop")

    def start(self) -> None:
        self.calls.append("start")


def run_while(machine: Machine, act: Callable[[], None], *, paused: bool = False) -> None:
    """Run it, ``act`` in its loop, and power it off."""

    def turn() -> None:
        act()
        machine.finish(Outcome.POWER_OFF)

    machine.loop.call_later(0.02, turn)
    assert machine.run(paused=paused) is Outcome.POWER_OFF
    assert not any(threads_of(machine))


def test_its_clocks_stand_still_while_its_cpus_do(build: Build) -> None:
    machine = build((), ())
    clock = Clock()
    machine.clocks.append(clock)
    seen: list[object] = []

    def act() -> None:
        seen.extend([machine.state, machine.resume(), machine.pause(), machine.state, machine.pause()])
        seen.extend([clock.calls.copy(), machine.resume(), machine.state, clock.calls])

    run_while(machine, act)
    running, paused = RunState.RUNNING, RunState.PAUSED
    assert seen == [running, False, True, paused, False, ["stop"], True, running, ["stop", "start"]]


def test_one_that_starts_paused_runs_nothing_until_it_is_resumed(build: Build) -> None:
    machine = build((triple_fault,))
    seen: list[object] = []
    run_while(machine, lambda: seen.extend([machine.state, machine.pause()]), paused=True)
    assert seen == [RunState.PRELAUNCH, False]

    machine = build((triple_fault,))
    clock = Clock()
    machine.clocks.append(clock)
    machine.loop.call_later(0.02, lambda: seen.append(machine.resume()))
    with pytest.raises(GuestCrashError):
        machine.run(paused=True)
    assert seen[-1] is True
    assert clock.calls == []


def test_a_paused_machine_can_be_ended(build: Build) -> None:
    machine = build((), ())
    run_while(machine, lambda: None if machine.pause() else pytest.fail("it did not pause"))
    assert machine.state is RunState.PAUSED


def test_an_nmi_is_sent_while_no_cpu_is_in_the_guest(build: Build) -> None:
    machine = build((), ())
    seen: list[list[bool]] = []
    machine.send_nmi = lambda: seen.append([vcpu._inside for vcpu in machine.vcpus])

    def act() -> None:
        machine.inject_nmi()
        machine.pause()
        machine.inject_nmi()
        seen.append([vcpu._inside for vcpu in machine.vcpus])

    run_while(machine, act)
    assert seen == [[False, False]] * 3
