"""Standard streams apart from a terminal, and the control of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fakes.loop import FakeLoop
from nemu.backends.command_control import MAX_LINE, MAX_WAITING, CommandControl
from nemu.backends.std_streams import InputStream, OutputStream


class FakeFrontend:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def readable(self) -> None:
        self.told.append("readable")

    def writable(self) -> None:
        self.told.append("writable")

    def changed(self) -> None:
        self.told.append("changed")


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end); what a test closed is not closed again."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def test_input_is_connected_until_its_end(loop: FakeLoop, pipe: tuple[int, int]) -> None:
    source, frontend = InputStream(pipe[0], loop), FakeFrontend()
    source.attach(frontend)
    assert source.read(10) == b""
    assert source.connected
    os.write(pipe[1], b"\x00\xff\r\n")
    loop.settle()
    assert frontend.told == ["readable"]
    assert source.read(3) == b"\x00\xff\r"
    assert source.read(3) == b"\n"
    os.close(pipe[1])
    assert source.read(3) == b""
    assert not source.connected
    assert frontend.told == ["readable", "changed"]
    assert loop.readers == {}
    source.close()


def test_closed_input_has_ended(loop: FakeLoop, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    source = InputStream(pipe[0], loop)
    assert not source.connected
    assert source.read(10) == b""


def test_output_is_done_once_a_slow_reader_has_it_all(loop: FakeLoop, pipe: tuple[int, int]) -> None:
    told: list[str] = []
    sink = OutputStream(pipe[1], loop, lambda: told.append("done"), lambda: told.append("broken"))
    data = memoryview(bytes(200_000))
    while data and (taken := sink.write(data)):
        data = data[taken:]
    sink.ended()
    loop.settle()
    assert told == []
    read = 0
    while told == []:
        read += len(os.read(pipe[0], 65536))
        loop.settle()
    assert told == ["done"]
    while read + len(data) < 200_000:
        read += len(os.read(pipe[0], 65536))
    sink.close()


def test_output_without_a_word_is_done_at_once(loop: FakeLoop, pipe: tuple[int, int]) -> None:
    told: list[str] = []
    sink = OutputStream(pipe[1], loop, lambda: told.append("done"), lambda: told.append("broken"))
    sink.ended()
    assert told == ["done"]
    sink.close()


def test_output_that_nobody_reads_is_told_and_dropped(loop: FakeLoop, pipe: tuple[int, int]) -> None:
    told: list[str] = []
    sink = OutputStream(pipe[1], loop, lambda: told.append("done"), lambda: told.append("broken"))
    os.close(pipe[0])
    assert sink.write(memoryview(b"lost")) == 4
    loop.settle()
    assert told == ["broken"]
    sink.ended()
    assert told == ["broken", "done"]
    sink.close()


def test_control_gives_whole_lines_however_they_come() -> None:
    said: list[str] = []
    control = CommandControl(said.append)
    for piece in (b"rea", b"dy\nexit 3", b"\n\nerr"):
        assert control.write(memoryview(piece)) == len(piece)
    assert said == ["ready", "exit 3", ""]


def test_control_keeps_no_more_than_a_line_of_a_flood() -> None:
    said: list[str] = []
    control = CommandControl(said.append)
    for _ in range(100):
        control.write(memoryview(b"x" * 4096))
    control.write(memoryview(b"\n\xff\n"))
    assert [len(line) for line in said] == [MAX_LINE, 1]


def test_control_keeps_words_for_a_guest_that_does_not_listen_but_not_for_ever() -> None:
    control, frontend = CommandControl(lambda line: None), FakeFrontend()
    control.attach(frontend)
    for _ in range(MAX_WAITING):
        control.tell("TERM")
    assert frontend.told[0] == "readable"
    assert control.read(5) == b"TERM\n"
    assert len(control.read(1 << 20)) <= MAX_WAITING + 5
