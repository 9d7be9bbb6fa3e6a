"""User-mode networking: the framing on a socket pair, and passt itself where it is installed."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemu.backends.netdev import MAX_FRAME
from nemu.backends.passt import Passt, StreamPort
from nemu.config.net import Forward
from nemu.errors import HostError


@pytest.fixture
def pair() -> Iterator[tuple[StreamPort, socket.socket]]:
    ours, theirs = socket.socketpair()
    port = StreamPort(ours)
    with theirs:
        yield port, theirs
    port.close()


def prefixed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def received(port: StreamPort, room: int = 70_000) -> list[bytes]:
    frames = []
    buffer = memoryview(bytearray(room))
    while length := port.receive([buffer[:7], buffer[7:]]):
        assert bytes(buffer[:12]) == bytes(12), "no offload was asked for"
        frames.append(bytes(buffer[12:length]))
    return frames


def test_frames_are_taken_out_of_the_stream(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    peer.send(prefixed(b"a" * 60) + prefixed(b"b" * 1514))
    assert received(port) == [b"a" * 60, b"b" * 1514]
    assert received(port) == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    cuts=st.lists(st.integers(0, 2500), max_size=8),
)
def test_frames_may_arrive_in_any_pieces(
    pair: tuple[StreamPort, socket.socket], frames: list[bytes], cuts: list[int]
) -> None:
    port, peer = pair
    stream = b"".join(map(prefixed, frames))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    result = []
    for start, end in itertools.pairwise(edges):
        peer.sendall(stream[start:end])
        result += received(port)
    assert result == frames


def test_a_stream_of_largest_frames_fits_the_buffer(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    peer.setblocking(False)
    stream = memoryview(b"".join(prefixed(bytes([n]) * MAX_FRAME) for n in range(5)))
    frames: list[bytes] = []
    while len(frames) < 5:
        if stream:
            try:
                stream = stream[peer.send(stream) :]
            except BlockingIOError:
                pass
        frames += received(port)
    assert [(len(frame), frame[0], frame[-1]) for frame in frames] == [(MAX_FRAME, n, n) for n in range(5)]


def test_an_oversized_frame_ends_the_connection(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    peer.send(struct.pack(">I", MAX_FRAME + 1))
    with pytest.raises(ConnectionError, match="65551 bytes"):
        received(port)


def test_a_frame_that_the_guest_has_no_room_for_is_dropped(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    peer.send(prefixed(b"a" * 200) + prefixed(b"b" * 50))
    assert received(port, room=112) == [b"b" * 50]


def test_the_end_of_the_peer_is_an_error(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    peer.close()
    with pytest.raises(ConnectionError, match="has ended"):
        received(port)
    with pytest.raises(OSError, match="Broken pipe"):
        port.send([memoryview(bytes(100))])


def test_frames_are_sent_with_their_length_and_without_the_header(
    pair: tuple[StreamPort, socket.socket],
) -> None:
    port, peer = pair
    assert port.send([memoryview(b"h" * 10), memoryview(b"hhframe of some bytes")])
    assert peer.recv(100) == prefixed(b"frame of some bytes")


def test_what_is_too_short_for_a_frame_is_dropped(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    assert port.send([memoryview(bytes(12))])
    assert port.send([memoryview(bytes(12 + 13))])
    assert select.select([peer], [], [], 0)[0] == []


def test_a_full_socket_is_reported_and_loses_nothing(pair: tuple[StreamPort, socket.socket]) -> None:
    port, peer = pair
    sent = []
    while True:
        frame = os.urandom(60_000)
        if not port.send([memoryview(bytes(12) + frame)]):
            break
        sent.append(frame)
    assert port.send([memoryview(bytes(12) + b"not taken" * 10)]) is False
    stream = b""
    total = sum(len(frame) + 4 for frame in sent)
    last = b"after".ljust(20)
    taken = False
    while len(stream) < total + len(last) + 4:
        stream += peer.recv(1 << 20)
        taken = taken or port.send([memoryview(bytes(12) + last)])
    assert stream == b"".join(map(prefixed, [*sent, last]))


def test_a_missing_passt_says_what_to_install() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="passt is not installed; try: apt install passt"):
        Passt("nemu-no-such-passt")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_passt_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "passt"
    program.write_text(
        "#!/bin/sh\necho 'Failed to send 9 bytes to syslog' >&2\necho 'no way out' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    port = Passt(str(program))
    with pytest.raises(HostError, match="--net user: passt cannot start: no way out"):
        port.ready()
    port.close()


def test_ports_of_the_host_are_options_of_passt(tmp_path: Path) -> None:
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\necho $* >&2\nexit 1\n")
    program.chmod(0o755)
    forward = [
        Forward("tcp", "", 8080, 80),
        Forward("udp", "127.0.0.1", 53, 5353),
        Forward("tcp", "::1", 1, 2),
    ]
    port = Passt(str(program), forward)
    with pytest.raises(HostError) as caught:
        port.ready()
    assert str(caught.value).endswith(
        "--quiet --fd 3 --tcp-ports=8080:80 --udp-ports=127.0.0.1/53:5353 --tcp-ports=::1/1:2"
    )
    port.close()


def test_a_port_that_passt_cannot_have_is_told_in_one_line() -> None:
    assert shutil.which("passt"), "passt is not installed: apt install passt"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        port = Passt(forward=[Forward("tcp", "127.0.0.1", number, 80)])
        with pytest.raises(HostError, match=f"passt cannot start: Failed to bind .*127.0.0.1/{number}:80"):
            port.ready()
        port.close()


def test_passt_listens_where_it_was_told() -> None:
    assert shutil.which("passt"), "passt is not installed: apt install passt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    port = Passt(forward=[Forward("tcp", "127.0.0.1", number, 80)])
    port.ready()
    with socket.create_connection(("127.0.0.1", number)):
        pass
    port.close()


ARP_REQUEST = bytes.fromhex(
    "ffffffffffff 020000000001 0806"  # to all, from the guest
    "0001 0800 06 04 0001"  # who has, by Ethernet, an IPv4 address
    "020000000001 0a000002 000000000000 0a000001"
).ljust(60, b"\0")


def running_passts() -> set[str]:
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            name, state = Path(f"/proc/{pid}/stat").read_text().split("(")[1].split(")")
        except OSError:
            continue
        if name.startswith("passt") and not state.startswith(" Z"):
            found.add(pid)
    return found


def test_passt_answers_the_guest_and_ends_with_us() -> None:
    assert shutil.which("passt"), "passt is not installed: apt install passt"
    before = running_passts()
    port = Passt()
    port.ready()
    port.ready()
    assert port.send([memoryview(bytes(12) + ARP_REQUEST)])
    deadline = time.monotonic() + 10
    frames: list[bytes] = []
    while not any(frame[12:14] == b"\x08\x06" for frame in frames):
        assert time.monotonic() < deadline
        select.select([port], [], [], 0.1)
        frames += received(port)
    ours = running_passts() - before
    assert ours
    port.close()
    while running_passts() & ours:
        assert time.monotonic() < deadline
        time.sleep(0.02)
