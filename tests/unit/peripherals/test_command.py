"""How a command's run ends, by what its guest says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes.loop import FakeLoop
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.machine import Outcome
from nemu.peripherals import command as module
from nemu.peripherals.command import Command
from nemu.peripherals.kind import Run

NO_EVENTS = cast(Any, lambda *event, **data: None)


class Rig:
    """A command on pipes, and what the machine was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "archive", lambda config, streams: ",".join(streams).encode())
        self.loop = FakeLoop()
        config = MachineConfig(command=("true",), console=ChardevConfig("null"))
        self.outcomes: list[Outcome] = []
        run = Run(config, cast(Any, self.loop), lambda: None, NO_EVENTS)
        self.command = next(Command.at_start(run, config.command))
        machine = SimpleNamespace(loop=self.loop, finish=self.outcomes.append)
        self.devices = [self.command.device(cast(Any, machine))]
        self.ports = {port.name: port.backend for port in self.command._ports}

    def say(self, line: str) -> None:
        self.ports["nemu.control"].write(memoryview(f"{line}\n".encode()))

    def heard(self) -> bytes:
        return self.ports["nemu.control"].read(4096)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(monkeypatch)
    yield made
    made.command.close()


def test_every_stream_has_a_port_behind_the_control(rig: Rig) -> None:
    assert list(rig.ports) == ["nemu.control", "nemu.in", "nemu.out", "nemu.err"]
    assert rig.command.initramfs == b"in,out,err"
    assert len(rig.devices) == 1


def test_on_a_terminal_only_what_is_no_terminal_has_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "archive", lambda config, streams: ",".join(streams).encode())
    for tty, streams in ((True, b""), (False, b"err")):
        monkeypatch.setattr(os, "isatty", lambda fd, tty=tty: tty)
        command = Command(
            Run(MachineConfig(command=("true",)), cast(Any, FakeLoop()), lambda: None, NO_EVENTS)
        )
        assert command.initramfs == streams
        command.close()


def test_the_machine_ends_when_status_and_all_output_are_there(rig: Rig) -> None:
    rig.say("ready")
    rig.say("exit 42")
    rig.ports["nemu.out"].ended()
    assert (rig.outcomes, rig.command.status) == ([], None)
    rig.ports["nemu.err"].ended()
    assert (rig.outcomes, rig.command.status) == ([Outcome.POWER_OFF], 42)


def test_the_first_status_counts(rig: Rig) -> None:
    for line in ("exit 1", "exit 2", "exit", "exit x", "exit -1", "exit \u0663", "nonsense"):
        rig.say(line)
    rig.ports["nemu.out"].ended()
    rig.ports["nemu.err"].ended()
    assert rig.command.status == 1


def test_what_is_missing_in_the_guest_is_said(rig: Rig) -> None:
    rig.say("ready")
    rig.say("error this kernel has no virtiofs: CONFIG_VIRTIO_FS")
    assert rig.outcomes == [Outcome.POWER_OFF]
    assert rig.command.status is None
    assert rig.command.problem == "this kernel has no virtiofs: CONFIG_VIRTIO_FS"


def test_a_guest_that_says_nothing_lacks_what_it_takes(rig: Rig) -> None:
    assert "CONFIG_VIRTIO_CONSOLE" in rig.command.problem
    rig.say("ready")
    assert rig.command.problem == "the guest ended before its command did"


def test_a_signal_goes_to_a_command_that_there_is(rig: Rig) -> None:
    assert not rig.command.signal(15)
    rig.say("ready")
    assert rig.command.signal(15)
    assert rig.command.signal(2)
    assert rig.heard() == b"TERM\nINT\n"
