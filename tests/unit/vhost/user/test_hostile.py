"""A back end that is an enemy: whatever it sends ends its session, and nothing else."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.loop import FakeLoop
from nemu.vhost.user import message, script
from nemu.vhost.user.channel import Channel, Script
from nemu.vhost.user.message import BackendError, Inbox, Message, Request
from nemu.vhost.user.requests import Requests
from nemu.vhost.user.script import Wish

U32 = st.integers(0, 0xFFFF_FFFF)
HEADERS = st.builds(
    lambda number, flags, size: struct.pack("=III", number, flags, size),
    st.integers(0, 48) | U32,
    st.sampled_from([1, 5, 9, 13]) | U32,
    st.integers(0, 64) | U32,
)
NOISE = st.lists(HEADERS | st.binary(max_size=100), max_size=6).map(b"".join)
CASES = settings(max_examples=200, deadline=None)


def reply(number: int, payload: bytes, flags: int = 5) -> bytes:
    return struct.pack("=III", number, flags, len(payload)) + payload


def u64(number: int, value: int) -> bytes:
    return reply(number, struct.pack("=Q", value))


@CASES
@given(NOISE, st.lists(st.integers(1, 30), max_size=6))
def test_any_bytes_in_any_pieces_are_messages_or_an_error(data: bytes, cuts: list[int]) -> None:
    inbox = Inbox()
    taken = 0
    try:
        for cut in [*cuts, len(data)]:
            piece, data = data[:cut], data[cut:]
            inbox.add(piece, [])
            while (found := inbox.next()) is not None:
                taken += 1
                assert found.flags & 3 == 1
                assert len(found.payload) <= message.MAX_PAYLOAD
    except BackendError:
        pass
    assert len(inbox._data) <= message.HEADER.size + message.MAX_PAYLOAD + 700


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def everything(wish: Wish) -> Script[None]:
    """Every kind of reply that there is."""
    info = yield from script.handshake(wish)
    yield from script.write_config({(0, 4): 7})
    inflight = yield from script.get_inflight(2, 16)
    message.close_all([inflight.fd])
    replies = yield [message.state(message.GET_VRING_BASE, index, 0) for index in range(2)]
    for index, found in enumerate(replies):
        message.ring_base(found, index)
    assert 0 <= info.queues < 1 << 64


@CASES
@given(
    st.lists(NOISE, max_size=4),
    st.integers(0, 12),
    st.lists(st.integers(0, 9), max_size=12),
    st.booleans(),
)
def test_a_channel_survives_any_answers(
    noise: list[bytes], honest: int, fds: list[int], acknowledged: bool
) -> None:
    """The first ``honest`` replies are right; then there is noise, and descriptors anywhere."""
    before = descriptors()
    loop = FakeLoop()
    ours, theirs = socket.socketpair()
    lost: list[BackendError] = []
    channel = Channel(ours, loop, lost.append)
    channel.acknowledged = acknowledged
    results: list[None] = []
    requests = os.open(os.devnull, os.O_RDONLY)
    channel.run(everything(Wish(16, requests, 0)), results.append)
    good = [
        u64(1, 1 << 32 | 1 << 30),
        u64(15, message.P_MQ | message.P_CONFIG | message.P_INFLIGHT_SHMFD | message.P_CONFIGURE_MEM_SLOTS),
        u64(17, 4),
        u64(36, 8),
        reply(24, struct.pack("=III", 0, 16, 0) + bytes(16)),
    ]
    for number, data in enumerate([*good[:honest], *noise]):
        extra = fds[number] if number < len(fds) and number >= honest else 0
        passed = [os.open(os.devnull, os.O_RDONLY) for _ in range(extra)]
        try:
            if data:
                socket.send_fds(theirs, [data], passed)
        except OSError:
            pass  # it has hung up already
        message.close_all(passed)
        loop.settle()
    theirs.close()
    loop.settle()
    channel.close()
    os.close(requests)
    assert results == []  # no noise answers everything
    assert len(lost) == 1
    assert loop.readers == loop.writers == {}
    assert descriptors() == before


@CASES
@given(NOISE, st.integers(0, 9))
def test_requests_of_the_back_end_are_answered_or_end_the_session(data: bytes, count: int) -> None:
    before = descriptors()
    loop = FakeLoop()
    lost: list[BackendError] = []
    changed: list[bool] = []
    requests = Requests(loop, lambda: changed.append(True), lost.append)
    with socket.socket(fileno=os.dup(requests.theirs)) as theirs:
        requests.sent()
        passed = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        if data:
            socket.send_fds(theirs, [data], passed)
        message.close_all(passed)
        loop.turn()
    loop.turn()
    requests.close()
    assert len(lost) <= 2
    assert descriptors() == before


@pytest.mark.parametrize(
    ("request_", "payload", "flags", "fds"),
    [
        (message.ask(1), struct.pack("=I", 1), 5, 0),
        (message.ask(1), bytes(16), 5, 0),
        (message.ask(1), bytes(8), 1, 0),  # not marked as a reply
        (message.ask(1), bytes(8), 5, 1),
        (message.get_inflight(1, 16), bytes(24), 5, 0),
        (message.get_inflight(1, 16), bytes(24), 5, 2),
        (message.get_config(16), bytes(20), 5, 0),
        (message.state(11, 0, 0), bytes(12), 5, 0),
    ],
)
def test_a_reply_that_does_not_fit_is_refused(
    request_: Request, payload: bytes, flags: int, fds: int
) -> None:
    passed = tuple(os.open(os.devnull, os.O_RDONLY) for _ in range(fds))
    with pytest.raises(BackendError, match=f"answers message {request_.id}"):
        message.check_reply(request_, Message(request_.id, flags, payload, passed))
    for fd in passed:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_replies_about_something_else_are_refused() -> None:
    with pytest.raises(BackendError, match="ring 3, asked for ring 1"):
        message.ring_base(Message(11, 5, struct.pack("=II", 3, 0), ()), 1)
    with pytest.raises(BackendError, match="is at 65536"):
        message.ring_base(Message(11, 5, struct.pack("=II", 1, 0x10000), ()), 1)
    with pytest.raises(BackendError, match="20 bytes of configuration at 0, asked for 16"):
        message.config(Message(24, 5, struct.pack("=III", 0, 20, 0) + bytes(16), ()), 16)
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(BackendError, match="to track 2 queues of 8"):
        message.inflight(Message(31, 5, struct.pack("=QQHH4x", 64, 0, 2, 8), (fd,)), 1, 16)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_reply_that_nobody_asked_for_ends_the_session() -> None:
    loop = FakeLoop()
    ours, theirs = socket.socketpair()
    lost: list[BackendError] = []
    channel = Channel(ours, loop, lost.append)
    theirs.send(u64(1, 0))
    loop.settle()
    channel.close()
    theirs.close()
    assert [str(error) for error in lost] == ["sends message 1 unasked"]


def test_a_back_end_that_reads_nothing_does_not_block_us() -> None:
    """More than its socket takes: the rest is sent as it goes, and the time runs out."""
    loop = FakeLoop()
    ours, theirs = socket.socketpair()
    lost: list[BackendError] = []
    channel = Channel(ours, loop, lost.append)

    def flood() -> Script[None]:
        yield [Request(3, bytes(4000)) for _ in range(1000)]

    channel.run(flood(), lambda _: None)
    assert channel.busy
    assert loop.writers
    for timer in loop.timers:
        timer.expire()
    theirs.close()
    assert [str(error) for error in lost] == ["does not answer for 5 seconds"]
    assert loop.readers == loop.writers == {}


def test_a_back_end_that_reads_slowly_gets_everything_in_order() -> None:
    loop = FakeLoop()
    ours, theirs = socket.socketpair()
    done: list[None] = []
    lost: list[BackendError] = []
    channel = Channel(ours, loop, lost.append)
    requests = [Request(3, struct.pack("=Q", number) * 500) for number in range(300)]

    def flood() -> Script[None]:
        yield requests

    channel.run(flood(), done.append)
    received = b""
    while not done:
        received += theirs.recv(100_000)
        loop.turn()
    theirs.setblocking(False)
    while len(received) < sum(len(request.encode()) for request in requests):
        received += theirs.recv(1 << 20)
    assert received == b"".join(request.encode() for request in requests)
    channel.close()
    theirs.close()
    assert lost == []
