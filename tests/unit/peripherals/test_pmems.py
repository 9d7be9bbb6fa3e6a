"""Persistent memory as part of a machine: where it goes, who is told when its file changes, what is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.loop import FakeLoop
from nemu.config import MachineConfig
from nemu.config.pmem import PmemConfig
from nemu.errors import ConfigError, HostError
from nemu.memory import DeviceMemory, GuestRam, Region
from nemu.peripherals.kind import Run
from nemu.peripherals.pmems import Pmem

SIZE = 4 << 20
START = 4 << 30


class FakeSlots:
    def __init__(self) -> None:
        self.shown: list[tuple[Region, bool]] = []

    def add_region(self, region: Region, *, readonly: bool = False) -> None:
        self.shown.append((region, readonly))


class FakeMachine(SimpleNamespace):
    def __init__(self, loop: FakeLoop, room: int = 8 << 30) -> None:
        super().__init__(
            loop=loop,
            lock=threading.RLock(),
            ram=GuestRam([(0, 1 << 20)]),
            slots=FakeSlots(),
            device_memory=DeviceMemory(START, START + room),
            checks=[],
            at_close=[],
            failures=[],
        )
        self.fail = self.failures.append

    def close(self) -> None:
        while self.at_close:
            self.at_close.pop()()
        self.ram.close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(path.name.encode() * SIZE)
    return list(map(str, paths))


@pytest.fixture
def opened(files: list[str], loop: FakeLoop) -> Iterator[list[Pmem]]:
    pmems = open_pmems(loop, PmemConfig(files[0]), PmemConfig(files[1], readonly=True))
    yield pmems
    close(pmems)
    assert loop.readers == {}


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def open_pmems(loop: FakeLoop, *pmems: PmemConfig) -> list[Pmem]:
    run = Run(MachineConfig(pmems=pmems), loop, lambda: None, lambda name, **data: None)  # type: ignore[arg-type]
    opened: list[Pmem] = []
    try:
        for one in Pmem.at_start(run, pmems):
            opened.append(one)
    except ConfigError:
        close(opened)
        raise
    return opened


def close(pmems: list[Pmem]) -> None:
    for one in pmems:
        one.close()


def make(pmems: list[Pmem], machine: Any) -> list[str]:
    return [one.device(machine).name for one in pmems]


def test_each_file_is_memory_of_each_machine(opened: list[Pmem], loop: FakeLoop, files: list[str]) -> None:
    for byte in (b"x", b"y"):  # a reboot: the same files at the same place
        machine = FakeMachine(loop)
        assert make(opened, machine) == ["virtio-pmem0", "virtio-pmem1"]
        assert [(region.gpa, readonly) for region, readonly in machine.slots.shown] == [
            (START, False),
            (START + (1 << 30), True),
        ]
        machine.ram.write(START, byte)
        assert Path(files[0]).read_bytes()[:2] == byte + b"a"
        assert machine.ram.read(START + (1 << 30), 2) == b"bb"
        machine.close()
        for one in opened:
            one.drain()


def test_a_file_that_becomes_shorter_ends_the_machine(
    opened: list[Pmem], loop: FakeLoop, files: list[str]
) -> None:
    machine = FakeMachine(loop)
    make(opened, machine)
    with open(files[1], "r+b") as file:
        file.write(b"other")  # changes are no harm
    loop.settle()
    assert machine.failures == []
    os.truncate(files[1], SIZE - 1)
    loop.settle()
    assert [str(error) for error in machine.failures] == [
        f"--pmem {files[1]}: became shorter while it was in use ({SIZE - 1} bytes left of {SIZE})"
    ]
    machine.checks[0]()
    with pytest.raises(HostError, match="became shorter"):
        machine.checks[1]()
    machine.close()
    with pytest.raises(HostError, match="became shorter"):
        make(opened, FakeMachine(loop))


def test_a_store_of_the_guest_wakes_nobody(opened: list[Pmem], loop: FakeLoop) -> None:
    machine = FakeMachine(loop)
    make(opened, machine)
    machine.ram.write(START, b"x" * 100)
    assert not loop.turn()
    machine.close()


def test_an_access_of_ours_to_what_is_gone_ends_the_machine(
    opened: list[Pmem], loop: FakeLoop, files: list[str]
) -> None:
    machine = FakeMachine(loop)
    make(opened, machine)
    os.truncate(files[0], 0)
    assert machine.ram.read(START + 8192, 4) == bytes(4)  # and no SIGBUS
    loop.settle()
    assert {str(error) for error in machine.failures} == {
        f"--pmem {files[0]}: became shorter while it was in use (0 bytes left of {SIZE})",
        f"--pmem {files[0]}: cannot be read or written any more (is its file system full?)",
    }
    machine.close()


def test_too_little_room_names_the_file(opened: list[Pmem], loop: FakeLoop, files: list[str]) -> None:
    machine = FakeMachine(loop, room=1 << 30)
    with pytest.raises(
        ConfigError, match=rf"^--pmem {files[1]}: needs 4 MiB of guest addresses, 0 MiB are left"
    ):
        make(opened, machine)
    machine.close()


def test_a_mistake_leaves_nothing_open(loop: FakeLoop, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(512))
    before = os.listdir("/proc/self/fd")
    for wrong in (PmemConfig(str(tmp_path / "odd")), PmemConfig(files[0]), PmemConfig("none")):
        with pytest.raises(ConfigError, match="--pmem"):
            open_pmems(loop, PmemConfig(files[0]), wrong)
    assert (os.listdir("/proc/self/fd"), loop.readers) == (before, {})


def test_readers_share_a_file_and_a_writer_has_it_alone(loop: FakeLoop, files: list[str]) -> None:
    first = open_pmems(loop, PmemConfig(files[0], readonly=True), PmemConfig(files[0], readonly=True))
    with pytest.raises(ConfigError, match="is in use already"):
        open_pmems(FakeLoop(), PmemConfig(files[0]))
    close(first)
