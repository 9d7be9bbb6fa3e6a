"""The frames between the emulated host's agent and the process outside."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemu.host.emulated import wire

Frame = tuple[int, int, bytes]


class Pair:
    """Two pumps that talk to each other, and what each was told."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.frames: list[list[Frame]] = [[], []]
        self.ended: list[list[int]] = [[], []]
        self.pumps = [self._pump(number) for number in (0, 1)]

    def _pump(self, number: int) -> wire.Pump:
        def on_frame(kind: int, channel: int, payload: bytes) -> None:
            self.frames[number].append((kind, channel, payload))

        return wire.Pump(self.sockets[number].fileno(), on_frame, self.ended[number].append)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            for pump in self.pumps:
                pump.turn(0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    for end in pair.sockets:
        end.close()


def test_a_stream_of_any_length_arrives_whole_and_tells_its_end(pair: Pair) -> None:
    data = random.Random(1).randbytes(5 * wire.WINDOW + 17)
    sink = pair.pumps[1].sinks[8] = wire.Sink()
    pair.pumps[0].sources[8] = wire.Source(data=data)
    while not pair.ended[1]:
        pair.turn()
    assert bytes(sink.collected) == data
    assert pair.ended == [[8], [8]]


def test_a_stream_that_nobody_reads_stops_at_its_window_and_lets_others_pass(pair: Pair) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    pair.pumps[1].sinks[8] = wire.Sink(writer)
    stuck = pair.pumps[0].sources[8] = wire.Source(data=bytes(10 * wire.WINDOW))
    pair.turn(200)
    sink = pair.pumps[1].sinks[9] = wire.Sink()
    pair.pumps[0].sources[9] = wire.Source(data=b"passes")
    pair.turn(10)
    assert bytes(sink.collected) == b"passes"
    assert stuck.credit == 0
    assert len(pair.pumps[1].sinks[8].pending) <= wire.WINDOW
    os.close(reader)
    pair.turn(500)  # the reader has left: the rest is dropped, not kept
    assert 8 in pair.ended[0]


def test_control_frames_pass_between_data(pair: Pair) -> None:
    pair.pumps[0].sources[8] = wire.Source(data=bytes(wire.WINDOW))
    pair.pumps[0].send(wire.SIGNAL, 16, b"\x0f\x00")
    pair.turn(5)
    assert pair.frames[1] == [(wire.SIGNAL, 16, b"\x0f\x00")]


def test_the_end_of_the_link_is_told(pair: Pair) -> None:
    pair.sockets[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(wire.LinkClosedError):
        pair.pumps[0].turn(1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([wire.START, wire.EXIT]), st.binary(max_size=300)), max_size=20),
    st.data(),
)
def test_frames_survive_being_cut_anywhere(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    received: list[Frame] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pump = wire.Pump(ours.fileno(), lambda *frame: received.append(frame), lambda channel: None)
        stream = b"".join(wire.HEADER.pack(kind, 8, len(body)) + body for kind, body in frames)
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            theirs.sendall(stream[:cut])
            stream = stream[cut:]
            pump.turn(0)
    assert received == [(kind, 8, body) for kind, body in frames]
