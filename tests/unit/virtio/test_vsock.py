"""The socket device between a guest's driver and real Unix sockets."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends import vsock_socket
from nemu.backends.vsock_socket import VsockSocket
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.vsock import OUTBOX, VirtioVsock

CID = 7
# From virtio 1.2, section 5.10.6, by hand.
HEADER = struct.Struct("<QQIIIHHIII")
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
RECEIVE, SEND = 1, 2
ROOM = 262144
QUEUE = 64


class Packet:
    """A packet from the device."""

    def __init__(self, data: bytes) -> None:
        fields = HEADER.unpack(data[:44])
        self.src_cid, self.dst_cid, self.src_port, self.dst_port = fields[:4]
        self.length, self.type, self.op, self.flags, self.buf_alloc, self.fwd_cnt = fields[4:]
        self.data = data[44:]


class Rig:
    """An active device, its driver, and the folder of its sockets."""

    def __init__(self, ram: GuestRam, folder: Path) -> None:
        self.ram = ram
        self.path = str(folder / "vsock")
        self.loop = FakeLoop()
        self.backend = VsockSocket(self.path, self.loop)
        self.device = VirtioVsock("virtio-vsock0", CID, self.backend, self.loop)
        self.transport = FakeTransport()
        self.start()

    def start(self, buffers: int = 32) -> None:
        """As a driver does after a reset."""
        self.ram.write(0x10000, bytes(0x2000))
        self.ram.write(0x90000, bytes(0x2000))
        self.receive = Driver(self.ram, QUEUE, base=0x10000, end=0x90000)
        self.transmit = Driver(self.ram, QUEUE, base=0x90000, end=0x1C0000)
        queues = (self.receive.queue(), self.transmit.queue(), None)
        self.device.activate(self.device.features, queues, self.transport)
        self.sent = self.forwarded = 0
        self.give(buffers)

    def give(self, buffers: int, size: int = 4096) -> None:
        for _ in range(buffers):
            self.receive.add(writable=[44, size])
        self.device.notify(0)

    def send(
        self,
        op: int,
        ports: tuple[int, int],
        data: bytes = b"",
        *,
        flags: int = 0,
        room: int = ROOM,
        kind: int = 1,
        cids: tuple[int, int] = (CID, 2),
        length: int | None = None,
    ) -> None:
        """A packet from the guest's port to the host's, ``ports``."""
        size = len(data) if length is None else length
        header = HEADER.pack(*cids, *ports, size, kind, op, flags, room, self.forwarded)
        self.transmit.add([header, data] if data else [header])
        self.device.notify(1)
        self.transmit.collect()
        self.loop.settle()

    def packets(self, refill: bool = True) -> list[Packet]:
        """What the device sent since the last call."""
        self.loop.settle()
        used = self.receive.collect()
        if refill and used:
            self.give(len(used))
        packets = [Packet(one.data[: one.written]) for one in used]
        for packet in packets:
            assert (packet.src_cid, packet.dst_cid) == (2, CID)
            assert packet.type == 1 or packet.op == RST  # which answers in kind
            assert packet.length == len(packet.data)
        return packets

    def client(self, text: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.path)
        client.sendall(text)
        self.loop.settle()
        return client

    def connected(self, port: int = 1024) -> tuple[socket.socket, tuple[int, int]]:
        """A client that the guest has accepted, and the ports."""
        client = self.client(b"CONNECT %d\n" % port)
        (request,) = self.packets()
        assert (request.op, request.dst_port, request.buf_alloc) == (REQUEST, port, vsock_socket.BUFFER)
        ports = port, request.src_port
        self.send(RESPONSE, ports)
        assert client.recv(100) == b"OK %d\n" % request.src_port
        return client, ports

    def listen(self, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(5)
        listener.bind(f"{self.path}_{port}")
        listener.listen(4)
        return listener

    def dialled(self, ports: tuple[int, int] = (5000, 80)) -> socket.socket:
        """A connection that the guest asked for."""
        with self.listen(ports[1]) as listener:
            self.send(REQUEST, ports)
            server, _ = listener.accept()
        os.unlink(f"{self.path}_{ports[1]}")
        server.settimeout(5)
        (response,) = self.packets()
        assert (response.op, response.src_port, response.dst_port) == (RESPONSE, ports[1], ports[0])
        return server

    def expire(self) -> None:
        """As if enough time had passed for every limit."""
        timers, self.loop.timers = self.loop.timers, []
        for timer in timers:
            timer.expire()
        self.loop.settle()


def at_end(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def rig(ram: GuestRam, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(ram, tmp_path)
    yield made
    made.device.deactivate(lambda: None)
    made.backend.close()
    assert made.transport.stopped == []
    assert os.listdir(tmp_path) == []
    assert made.loop.readers == made.loop.writers == {}


# --- clients of the host --------------------------------------------------------------------


def test_the_configuration_is_the_guests_address(rig: Rig) -> None:
    assert bytes(rig.device.config) == struct.pack("<Q", CID)


def test_a_client_is_connected_once_the_guest_accepts(rig: Rig) -> None:
    client, ports = rig.connected()
    client.sendall(b"question")
    (packet,) = rig.packets()
    assert (packet.op, packet.data, packet.src_port, packet.dst_port) == (RW, b"question", ports[1], ports[0])
    rig.send(RW, ports, b"answer")
    assert client.recv(100) == b"answer"


def test_what_follows_the_line_waits_for_the_guest(rig: Rig) -> None:
    client = rig.client(b"CONNECT 9\nearly")
    (request,) = rig.packets()
    rig.send(RESPONSE, (9, request.src_port))
    assert [packet.data for packet in rig.packets()] == [b"early"]
    assert client.recv(100) == b"OK %d\n" % request.src_port


def test_a_line_may_come_in_pieces(rig: Rig) -> None:
    client = rig.client(b"CONN")
    for part in (b"ECT 1", b"2", b"\n"):
        client.sendall(part)
        rig.loop.settle()
    assert [packet.dst_port for packet in rig.packets()] == [12]


def test_a_client_that_the_guest_refuses_is_closed(rig: Rig) -> None:
    client = rig.client(b"CONNECT 1024\n")
    (request,) = rig.packets()
    rig.send(RST, (1024, request.src_port))
    assert at_end(client)
    assert rig.packets() == []


@pytest.mark.parametrize("op", [REQUEST, SHUTDOWN, RW, CREDIT_UPDATE, 0, 99])
def test_any_other_answer_is_reset(rig: Rig, op: int) -> None:
    client = rig.client(b"CONNECT 1024\n")
    (request,) = rig.packets()
    rig.send(op, (1024, request.src_port))
    assert at_end(client)
    assert [packet.op for packet in rig.packets()] == [RST]


def test_a_guest_that_does_not_answer_loses_the_client(rig: Rig) -> None:
    client = rig.client(b"CONNECT 1024\n")
    rig.packets()
    rig.expire()
    assert at_end(client)
    assert [packet.op for packet in rig.packets()] == [RST]


LINES = [
    b"\n",
    b"CONNECT\n",
    b"CONNECT \n",
    b"CONNECT -1\n",
    b"CONNECT 1 \n",
    b"CONNECT 0x1\n",
    b"GET / HTTP/1.1\n",
]
LINES += [
    b"CONNECT 4294967295\n",
    b"CONNECT 4294967296\n",
    b"CONNECT 99999999999\n",
    b"x" * 32,
    b" CONNECT 1\n",
]
LINES += [
    "CONNECT ٣\n".encode(),
    b"CONNECT 1\r\r\n",
    b"CONNECT 00000000001\n",
    b"\0\n",
    b"CONNECT 1" + b" " * 40,
]


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_closes_the_client(rig: Rig, line: bytes) -> None:
    client = rig.client(line)
    assert at_end(client)
    assert rig.packets() == []


@given(st.binary(max_size=40))
def test_the_line_is_a_port_or_nothing(line: bytes) -> None:
    port = vsock_socket.parse_connect(line)
    assert port is None or line.upper().strip() == b"CONNECT " + line.strip()[8:]
    assert port is None or 0 <= port < 0xFFFF_FFFF


@pytest.mark.parametrize("port", [0, 1, 4294967294])
def test_every_port_can_be_asked_for(port: int) -> None:
    assert vsock_socket.parse_connect(b"CONNECT %d\n" % port) == port
    assert vsock_socket.parse_connect(b"connect %d\r\n" % port) == port


def test_a_client_without_a_line_is_closed_in_time(rig: Rig) -> None:
    client = rig.client(b"CONNECT 10")
    rig.expire()
    assert at_end(client)


def test_a_client_that_leaves_before_its_line_is_forgotten(rig: Rig) -> None:
    rig.client(b"CONN").close()
    rig.loop.settle()
    assert rig.packets() == []


def test_clients_beyond_the_bound_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_socket, "MAX_STREAMS", 2)
    first, second = rig.client(b"CONNECT 1\n"), rig.client()
    third = rig.client(b"CONNECT 3\n")
    assert [packet.dst_port for packet in rig.packets()] == [1]
    rig.send(REQUEST, (5000, 80))
    assert [packet.op for packet in rig.packets()] == [RST]  # nor does the guest get one more
    second.close()
    rig.loop.settle()
    assert [packet.dst_port for packet in rig.packets()] == [3]
    first.close()
    third.close()


def test_descriptors_that_ran_out_are_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", fails)
        client = rig.client(b"CONNECT 1\n")  # the loop comes to rest all the same
    assert rig.packets() == []
    rig.expire()
    assert [packet.dst_port for packet in rig.packets()] == [1]
    client.close()


# --- programs of the guest -------------------------------------------------------------------


def test_the_guest_reaches_who_listens_for_its_port(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(RW, (5000, 80), b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    assert [packet.data for packet in rig.packets()] == [b"answer"]


def test_a_port_without_a_listener_is_refused(rig: Rig) -> None:
    rig.send(REQUEST, (5000, 80))
    (packet,) = rig.packets()
    assert (packet.op, packet.src_port, packet.dst_port) == (RST, 80, 5000)


def test_a_listener_with_a_full_backlog_refuses_at_once(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{rig.path}_80")
        listener.listen(0)
        rig.send(REQUEST, (5000, 80))
        rig.send(REQUEST, (5001, 80))
        assert [packet.op for packet in rig.packets()] == [RESPONSE, RST]
    os.unlink(f"{rig.path}_80")


def test_a_request_for_a_connection_that_is_there_ends_it(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(REQUEST, (5000, 80))
    assert [packet.op for packet in rig.packets()] == [RST]
    assert at_end(server)


# --- credit ------------------------------------------------------------------------------------


def test_no_more_is_read_than_the_guest_has_room_for(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(CREDIT_UPDATE, (5000, 80), room=1000)
    server.sendall(b"x" * 1500)
    first, asked = rig.packets()
    assert (first.op, first.length, asked.op) == (RW, 1000, CREDIT_REQUEST)
    rig.send(CREDIT_UPDATE, (5000, 80), room=1000)  # nothing has been forwarded yet
    assert rig.packets() == []
    rig.forwarded = 600
    rig.send(CREDIT_UPDATE, (5000, 80), room=1000)
    assert [packet.length for packet in rig.packets()] == [500]


@pytest.mark.parametrize(("room", "forwarded"), [(0, 0), (0, 5), (1000, 1 << 31), (1000, 2000)])
def test_numbers_that_make_no_sense_are_no_credit(rig: Rig, room: int, forwarded: int) -> None:
    server = rig.dialled()
    rig.forwarded = forwarded
    rig.send(CREDIT_UPDATE, (5000, 80), room=room)
    server.sendall(b"x" * 100)
    assert [packet.op for packet in rig.packets()] == [CREDIT_REQUEST]


def test_the_guest_gets_credit_as_the_client_reads(rig: Rig) -> None:
    server = rig.dialled()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    told = sent = 0
    room = vsock_socket.BUFFER
    data = random.Random(1).randbytes(2_000_000)
    got = bytearray()
    while len(got) < len(data):
        count = min(30_000, len(data) - sent, room - (sent - told))
        if count:
            rig.send(RW, (5000, 80), data[sent : sent + count])
            sent += count
        else:
            got += server.recv(100_000)
        for packet in rig.packets():
            assert packet.op == CREDIT_UPDATE
            assert told < packet.fwd_cnt <= sent
            told = packet.fwd_cnt
    assert got == data


def test_data_beyond_the_credit_is_reset_and_bounded(rig: Rig) -> None:
    server = rig.dialled()
    ops: list[int] = []
    for _ in range(30):  # more than the client's socket and our buffer can hold
        rig.send(RW, (5000, 80), b"y" * 60_000)
        ops += [packet.op for packet in rig.packets()]
        if RST in ops:
            break
    assert ops[-1] == RST
    received = 0
    while part := server.recv(1 << 20):
        received += len(part)
        rig.loop.settle()
    assert 0 < received <= 30 * 60_000


def test_credit_that_is_asked_for_is_told(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(RW, (5000, 80), b"abc")
    rig.send(CREDIT_REQUEST, (5000, 80))
    (packet,) = rig.packets()
    assert (packet.op, packet.buf_alloc, packet.fwd_cnt) == (CREDIT_UPDATE, vsock_socket.BUFFER, 3)
    assert server.recv(10) == b"abc"


# --- the ends of a connection ----------------------------------------------------------------------


def test_a_client_may_stop_sending_and_still_receive(rig: Rig) -> None:
    client, ports = rig.connected()
    client.sendall(b"all")
    client.shutdown(socket.SHUT_WR)
    data, end = rig.packets()
    assert (data.data, end.op, end.flags) == (b"all", SHUTDOWN, SEND)
    rig.send(RW, ports, b"reply")
    rig.send(SHUTDOWN, ports, flags=RECEIVE | SEND)
    assert client.recv(100) == b"reply"
    assert at_end(client)
    assert [packet.op for packet in rig.packets()] == [RST]


def test_the_guest_may_stop_sending_and_still_receive(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(RW, (5000, 80), b"all")
    rig.send(SHUTDOWN, (5000, 80), flags=SEND)
    assert server.recv(100) == b"all"
    assert at_end(server)
    server.sendall(b"reply")
    assert [packet.data for packet in rig.packets()] == [b"reply"]
    rig.send(RW, (5000, 80), b"more")  # which it said it would not
    assert [packet.op for packet in rig.packets()] == [RST]


def test_the_guest_may_stop_receiving(rig: Rig) -> None:
    server = rig.dialled()
    rig.send(SHUTDOWN, (5000, 80), flags=RECEIVE)
    with pytest.raises(BrokenPipeError):
        server.sendall(b"x")
    rig.send(RW, (5000, 80), b"last")
    assert server.recv(100) == b"last"
    assert rig.packets() == []


def test_a_client_that_hangs_up_is_told_to_the_guest(rig: Rig) -> None:
    client, ports = rig.connected()
    client.close()
    (packet,) = rig.packets()
    assert (packet.op, packet.flags) == (SHUTDOWN, RECEIVE | SEND)
    rig.send(RW, ports, b"too late")
    assert rig.packets() == []
    rig.send(RST, ports)
    rig.send(RW, ports, b"unknown")
    assert [packet.op for packet in rig.packets()] == [RST]


def test_a_guest_that_does_not_acknowledge_the_end_is_reset_in_time(rig: Rig) -> None:
    client, _ = rig.connected()
    client.close()
    rig.packets()
    rig.expire()
    assert [packet.op for packet in rig.packets()] == [RST]


def test_a_client_that_dies_while_the_guest_sends_is_a_reset(rig: Rig) -> None:
    server = rig.dialled()
    server.shutdown(socket.SHUT_WR)
    rig.packets()
    server.close()
    rig.send(RW, (5000, 80), b"x")
    assert [packet.op for packet in rig.packets()] == [RST]


def test_what_the_guest_sent_before_it_closed_still_arrives(rig: Rig) -> None:
    server = rig.dialled()
    data = os.urandom(vsock_socket.BUFFER)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for start in range(0, len(data), 32768):
        rig.send(RW, (5000, 80), data[start : start + 32768])
    rig.send(SHUTDOWN, (5000, 80), flags=RECEIVE | SEND)
    assert rig.packets()[-1].op == RST
    got = bytearray()
    while part := server.recv(10_000):
        got += part
        rig.loop.settle()
    assert got == data


def test_a_reset_of_the_machine_ends_every_connection(rig: Rig) -> None:
    client, _ = rig.connected()
    server, asking, silent = rig.dialled(), rig.client(b"CONNECT 5\n"), rig.client()
    rig.device.deactivate(lambda: None)
    assert all(map(at_end, (client, server, asking, silent)))
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(rig.path)
    waiting.sendall(b"CONNECT 6\n")
    rig.loop.settle()
    rig.start()
    assert [packet.dst_port for packet in rig.packets()] == [6]
    waiting.close()


# --- wrong packets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 65535])
def test_a_packet_of_no_connection_is_reset(rig: Rig, op: int) -> None:
    rig.send(op, (1, 2))
    (packet,) = rig.packets()
    assert (packet.op, packet.src_port, packet.dst_port) == (RST, 2, 1)


def test_a_reset_of_no_connection_is_not_answered(rig: Rig) -> None:
    rig.send(RST, (1, 2))
    assert rig.packets() == []


def test_other_types_and_other_hosts_are_reset(rig: Rig) -> None:
    with rig.listen(80):
        rig.send(REQUEST, (5000, 80), kind=2)
        assert [packet.op for packet in rig.packets()] == [RST]
        rig.send(REQUEST, (5000, 80), cids=(CID, 9))
        rig.loop.settle()
        (used,) = rig.receive.collect()
        assert HEADER.unpack(used.data[:44])[:2] == (9, CID)
    os.unlink(f"{rig.path}_80")


def test_a_packet_from_another_address_is_dropped(rig: Rig) -> None:
    rig.send(REQUEST, (5000, 80), cids=(CID + 1, 2))
    assert rig.packets() == []


def test_an_operation_out_of_place_ends_the_connection(rig: Rig) -> None:
    for number, op in enumerate((RESPONSE, 0, 77)):
        server = rig.dialled((5000 + number, 80))
        rig.send(op, (5000 + number, 80))
        assert [packet.op for packet in rig.packets()] == [RST]
        assert at_end(server)


@pytest.mark.parametrize(
    ("parts", "match"),
    [([b"x" * 43], "no header"), ([HEADER.pack(CID, 2, 1, 2, 5, 1, RW, 0, 0, 0)], "longer")],
)
def test_a_packet_that_its_buffer_does_not_hold_stops_the_device(
    rig: Rig, parts: list[bytes], match: str
) -> None:
    rig.transmit.add(parts)
    with pytest.raises(GuestError, match=match):
        rig.device.notify(1)


def test_a_receive_buffer_without_room_stops_the_device(rig: Rig) -> None:
    rig.device.deactivate(lambda: None)
    rig.start(buffers=0)
    rig.receive.add(writable=[44])
    rig.transmit.add([HEADER.pack(CID, 2, 1, 2, 0, 1, RW, 0, 0, 0)])
    with pytest.raises(GuestError, match="without room"):
        rig.device.notify(1)


# --- a guest that takes nothing -------------------------------------------------------------------------


def test_a_guest_that_gives_no_buffers_is_not_heard_for_long(rig: Rig) -> None:
    rig.device.deactivate(lambda: None)
    rig.start(buffers=0)
    sent = taken = 0
    while sent == taken:
        for _ in range(32):
            rig.transmit.add([HEADER.pack(CID, 2, 1, 2, 0, 1, RW, 0, 0, 0)])
        sent += 32
        rig.device.notify(1)
        rig.loop.settle()
        taken += len(rig.transmit.collect())
        assert taken <= OUTBOX
    client = rig.client(b"CONNECT 1\n")
    assert at_end(client)
    rig.give(32)
    answered = 0
    while packets := rig.packets():
        answered += len(packets)
    assert answered == sent, "with room again, it goes on where it stopped"


def test_without_buffers_nothing_is_read_from_clients(rig: Rig) -> None:
    rig.device.deactivate(lambda: None)
    rig.start(buffers=1)
    server = rig.dialled()
    server.sendall(b"z" * 10_000)
    first = rig.packets(refill=False)
    rig.loop.settle()  # it comes to rest: no descriptor is left watched that is always ready
    rig.give(4)
    assert sum(packet.length for packet in first + rig.packets()) == 10_000


def test_bulk_data_passes_both_ways_unchanged(rig: Rig) -> None:
    client, ports = rig.connected()
    client.setblocking(False)
    up, down = random.Random(2).randbytes(3_000_000), random.Random(3).randbytes(3_000_000)
    sent = told = given = 0
    got, taken = bytearray(), bytearray()
    while len(got) < len(up) or len(taken) < len(down):
        for packet in rig.packets():
            told = packet.fwd_cnt
            got += packet.data
            rig.forwarded = len(got)
        count = min(20_000, len(down) - given, vsock_socket.BUFFER - (given - told))
        if count:
            rig.send(RW, ports, down[given : given + count], room=50_000)
            given += count
        else:
            rig.send(CREDIT_UPDATE, ports, room=50_000)
        try:
            sent += client.send(up[sent : sent + 100_000]) if sent < len(up) else 0
            taken += client.recv(1 << 20)
        except BlockingIOError:
            pass
    assert hashlib.sha256(got).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(taken).digest() == hashlib.sha256(down).digest()


def test_many_connections_one_after_another_leave_nothing(rig: Rig) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        client, ports = rig.connected(number)
        client.sendall(b"%d" % number)
        assert [packet.data for packet in rig.packets()] == [b"%d" % number]
        rig.send(SHUTDOWN, ports, flags=3)
        client.close()
        rig.packets()
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([(5000, 80), (5001, 80), (5000, 81), (1024, 1 << 30)]),
            st.binary(max_size=300),
            st.integers(0, 4),
            st.one_of(st.integers(0, 400), st.integers(0, 2**32 - 1)),
            st.integers(0, 2**32 - 1),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
def test_no_sequence_of_packets_does_more_than_end_connections(
    rig: Rig, sequence: list[tuple[int, tuple[int, int], bytes, int, int, int, int]]
) -> None:
    """Whatever the guest sends: no traceback, no descriptor lost, the device goes on."""
    rig.device.deactivate(lambda: None)
    rig.start()
    before = len(os.listdir("/proc/self/fd"))
    with rig.listen(80):
        client = rig.client(b"CONNECT 1024\nhello")
        for op, ports, data, flags, room, forwarded, extra in sequence:
            rig.forwarded = forwarded
            rig.send(op, ports, data, flags=flags, room=room)
            rig.packets()
            if extra == 3:
                client.close()
                rig.loop.settle()
        client.close()
    os.unlink(f"{rig.path}_80")
    rig.device.deactivate(lambda: None)
    rig.loop.settle()
    assert len(os.listdir("/proc/self/fd")) == before
    rig.start()
    client = rig.client(b"CONNECT 1\n")
    assert [packet.op for packet in rig.packets()] == [REQUEST]
    client.close()
