"""A vhost-user back end on a real Unix socket, written from QEMU's docs/interop/vhost-user.rst alone.

It shares no code with nemu.vhost.user.  It maps the front end's memory and serves the rings in a thread of
its own.  A ``handle`` that raises DiedError is a crash, and ``replies`` lets it answer anything.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

GET_FEATURES, SET_FEATURES, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR = 1, 2, 5, 8, 9
SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 10, 11, 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_INFLIGHT, SET_INFLIGHT = 21, 24, 25, 31, 32
GET_MAX_MEM_SLOTS, ADD_MEM_REG = 36, 37
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT, MEM_SLOTS = (1 << bit for bit in (0, 3, 5, 9, 12, 15))
VERSION_1, PROTOCOL = 1 << 32, 1 << 30

# What an answer is instead of the right one: header and payload as they are sent, and how many descriptors.
Answer = tuple[bytes, int]


class DiedError(Exception):
    """Ends the connection at once, in the middle of whatever was done."""


@dataclass
class Ring:
    """One ring as the front end described it.  ``taken`` are heads that were read and not given back."""

    number: int = 0
    size: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    kick: int = -1
    call: int = -1
    err: int = -1
    enabled: bool = False
    taken: list[int] = field(default_factory=list)


class Backend:
    """Listens at ``path`` until ``close``.  ``handle`` gets the readable bytes of each chain, and gives the
    bytes for its writable part, or None to keep the request."""

    def __init__(
        self,
        path: str,
        *,
        features: int = VERSION_1 | PROTOCOL,
        protocol: int = MQ | REPLY_ACK | CONFIG | BACKEND_REQ | INFLIGHT | MEM_SLOTS,
        config: bytes = bytes(range(60)),
        queues: int = 4,
        handle: Callable[[bytes], bytes | None] = lambda request: request[::-1],
    ) -> None:
        self.path, self.features, self.protocol = path, features, protocol
        self.config, self.queues, self.handle = bytearray(config), queues, handle
        self.log: list[int] = []  # ids of the messages of all connections
        self.config_writes: list[tuple[int, bytes]] = []
        self.connections = 0
        self.regions: list[tuple[int, int, int, mmap.mmap, int]] = []
        self.acked = self.acked_protocol = 0
        self.replies: dict[int, Callable[[bytes], Answer]] = {}
        self.refused: set[int] = set()  # acknowledged with an error
        self.deaf: set[int] = set()  # never answered, and nothing after it
        self.rings: dict[int, Ring] = {}
        self.requests: socket.socket | None = None
        self.crash_after_publish = False
        self._inflight: memoryview | None = None
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(1)
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    # --- what programs do -------------------------------------------------------------------

    def close(self) -> None:
        """End for good: the socket is gone too."""
        os.write(self._stopping, b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()
        os.close(self._stop)
        os.close(self._stopping)
        if os.path.exists(self.path):
            os.unlink(self.path)

    def announce(self, number: int = 2, need_reply: bool = True) -> None:
        """A request to the front end, by default that the configuration has changed."""
        assert self.requests
        self.requests.send(struct.pack("=III", number, 1 | (8 if need_reply else 0), 0))

    # --- messages ------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            connection, _ = self._listener.accept()
            self.connections += 1
            self._connection = connection
            try:
                with connection:
                    while self._turn(connection):
                        pass
            except (DiedError, ConnectionError):
                pass
            finally:
                self._forget()
            if select.select([self._stop], [], [], 0)[0]:
                return

    def _forget(self) -> None:
        for ring in self.rings.values():
            for fd in (ring.kick, ring.call, ring.err):
                if fd >= 0:
                    os.close(fd)
        self.rings.clear()
        self.regions.clear()
        if self._inflight:
            self._inflight.release()
            self._inflight = None
        if self.requests:
            self.requests.close()
            self.requests = None

    def _turn(self, connection: socket.socket) -> bool:
        kicks = {ring.kick: ring for ring in self.rings.values() if ring.kick >= 0}
        ready, _, _ = select.select([connection.fileno(), self._stop, *kicks], [], [])
        if self._stop in ready:
            return False
        if connection.fileno() in ready and not self._message(connection):
            return False
        for fd in ready:
            if fd in kicks and kicks[fd].number in self.rings:
                try:
                    os.eventfd_read(fd)
                except BlockingIOError:
                    pass
                self._serve_ring(kicks[fd])
        return True

    def _message(self, connection: socket.socket) -> bool:
        header, fds, _, _ = socket.recv_fds(connection, 12, 16)
        if not header:
            return False
        number, flags, size = struct.unpack("=III", header)
        payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
        assert flags & 3 == 1
        self.log.append(number)
        if number in self.deaf:
            for fd in fds:
                os.close(fd)
            select.select([self._stop], [], [], 30)
            return False
        answer = self._act(number, payload, fds)
        if number in self.replies:
            if answer is not None and answer[1] >= 0:
                os.close(answer[1])
            raw, count = self.replies[number](payload)
            descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
            if raw or count:
                socket.send_fds(connection, [raw], descriptors)
            for fd in descriptors:
                os.close(fd)
        elif answer is not None:
            self._reply(connection, number, *answer)
        elif flags & 8:
            self._reply(connection, number, struct.pack("=Q", int(number in self.refused)), -1)
        return True

    @staticmethod
    def _reply(connection: socket.socket, number: int, payload: bytes, fd: int) -> None:
        raw = struct.pack("=III", number, 5, len(payload)) + payload
        socket.send_fds(connection, [raw], [fd] if fd >= 0 else [])
        if fd >= 0:
            os.close(fd)

    def _act(self, number: int, payload: bytes, fds: list[int]) -> tuple[bytes, int] | None:
        numbers = {
            GET_FEATURES: self.features,
            GET_PROTOCOL_FEATURES: self.protocol,
            GET_QUEUE_NUM: self.queues,
            GET_MAX_MEM_SLOTS: 32,
        }
        if number in numbers:
            return struct.pack("=Q", numbers[number]), -1
        if number == SET_FEATURES:
            (self.acked,) = struct.unpack("=Q", payload)
        elif number == SET_PROTOCOL_FEATURES:
            (self.acked_protocol,) = struct.unpack("=Q", payload)
        elif number == SET_MEM_TABLE:
            self.regions.clear()
            (count,) = struct.unpack_from("=I", payload)
            for index in range(count):
                self._map(payload[8 + 32 * index :], fds[index])
        elif number == ADD_MEM_REG:
            self._map(payload[8:], fds[0])
        elif number == SET_BACKEND_REQ_FD:
            self.requests = socket.socket(fileno=fds[0])
        elif number in {GET_CONFIG, SET_CONFIG}:
            return self._act_on_config(number, payload)
        elif number in {GET_INFLIGHT, SET_INFLIGHT}:
            return self._act_on_inflight(number, payload, fds)
        elif len(payload) >= 8:
            return self._act_on_ring(number, payload, fds)
        return None

    def _act_on_config(self, number: int, payload: bytes) -> tuple[bytes, int] | None:
        offset, size, _ = struct.unpack_from("=III", payload)
        if number == GET_CONFIG:
            fits = offset + size <= len(self.config)
            return (payload[:12] + self.config[offset : offset + size] if fits else b""), -1
        self.config_writes.append((offset, payload[12:]))
        self.config[offset : offset + size] = payload[12:]
        return None

    def _act_on_ring(self, number: int, payload: bytes, fds: list[int]) -> tuple[bytes, int] | None:
        index, value = struct.unpack_from("=II", payload)
        ring = self.rings.setdefault(index & 0xFF, Ring(index & 0xFF))
        fd = fds[0] if fds else -1
        if number == SET_VRING_NUM:
            ring.size = value
        elif number == SET_VRING_BASE:
            ring.base = value
        elif number == SET_VRING_ADDR:
            _, _, ring.desc, ring.used, ring.avail, _ = struct.unpack("=IIQQQQ", payload)
        elif number == SET_VRING_ENABLE:
            ring.enabled = bool(value)
            self._serve_ring(ring)
        elif number == SET_VRING_CALL:
            ring.call = fd
        elif number == SET_VRING_ERR:
            ring.err = fd
        elif number == SET_VRING_KICK:
            ring.kick = fd
            self._recover(ring)
        elif number == GET_VRING_BASE:
            del self.rings[index]
            for fd in (ring.kick, ring.call, ring.err):
                if fd >= 0:
                    os.close(fd)
            return struct.pack("=II", index, ring.base), -1
        return None

    # --- memory and rings -----------------------------------------------------------------------

    def _map(self, region: bytes, fd: int) -> None:
        gpa, size, user, offset = struct.unpack_from("=QQQQ", region)
        self.regions.append((gpa, size, user, mmap.mmap(fd, offset + size), offset))
        os.close(fd)

    def at(self, address: int, length: int, *, user: bool = False) -> memoryview:
        """``length`` bytes at a guest-physical (or user) address."""
        for gpa, size, key, mapping, offset in self.regions:
            start = key if user else gpa
            if start <= address and address + length <= start + size:
                return memoryview(mapping)[offset + address - start :][:length]
        raise DiedError

    def u16(self, address: int) -> int:
        return int(struct.unpack("<H", self.at(address, 2, user=True))[0])

    def _serve_ring(self, ring: Ring) -> None:
        if not ring.enabled or ring.kick < 0:
            return
        while ring.base != self.u16(ring.avail + 2):
            head = self.u16(ring.avail + 4 + 2 * (ring.base % ring.size))
            ring.base = (ring.base + 1) % 0x10000
            self._track(ring, head, 1)
            ring.taken.append(head)
            self._answer(ring, head)

    def _answer(self, ring: Ring, head: int) -> None:
        readable, writable, index = b"", [], head
        while True:
            gpa, length, flags, following = struct.unpack(
                "<QIHH", self.at(ring.desc + 16 * index, 16, user=True)
            )
            if flags & 2:
                writable.append(self.at(gpa, length))
            else:
                readable += bytes(self.at(gpa, length))
            if not flags & 1:
                break
            index = following
        result = self.handle(readable)
        if result is None:
            return
        room = writable[0][: len(result)] if writable else memoryview(bytearray())
        room[:] = result[: len(room)]
        self.complete(ring, head, len(result))

    def complete(self, ring: Ring, head: int, written: int = 0) -> None:
        """Give ``head`` back to the driver, in the order of steps that the specification has."""
        used = self.u16(ring.used + 2)
        self.at(ring.used + 4 + 8 * (used % ring.size), 8, user=True)[:] = struct.pack("<II", head, written)
        if self._inflight:
            self._field(ring, 12)[:] = struct.pack("=H", head)  # last_batch_head
        self.at(ring.used + 2, 2, user=True)[:] = struct.pack("<H", (used + 1) % 0x10000)
        if self.crash_after_publish:
            self.crash_after_publish = False
            raise DiedError
        self._track(ring, head, 0)
        if self._inflight:
            self._field(ring, 14)[:] = struct.pack("=H", (used + 1) % 0x10000)
        ring.taken.remove(head)
        if ring.call >= 0:
            os.eventfd_write(ring.call, 1)

    # --- requests in flight: "Inflight I/O tracking" ----------------------------------------------

    def _act_on_inflight(self, number: int, payload: bytes, fds: list[int]) -> tuple[bytes, int] | None:
        size, offset, queues, queue_size = struct.unpack("=QQHH4x", payload)
        if number == GET_INFLIGHT:
            size = queues * (16 + 16 * queue_size)
            fd = os.memfd_create("inflight")
            os.ftruncate(fd, size)
            return struct.pack("=QQHH4x", size, 0, queues, queue_size), fd
        self._inflight = memoryview(mmap.mmap(fds[0], size, offset=offset))
        self._stride = 16 + 16 * queue_size
        os.close(fds[0])
        return None

    def _field(self, ring: Ring, offset: int) -> memoryview:
        assert self._inflight
        return self._inflight[ring.number * self._stride + offset :][:2]

    def _entry(self, ring: Ring, head: int) -> memoryview:
        assert self._inflight
        return self._inflight[ring.number * self._stride + 16 + 16 * head :][:16]

    def _track(self, ring: Ring, head: int, inflight: int) -> None:
        if self._inflight:
            self._counter = getattr(self, "_counter", 0) + 1
            entry = self._entry(ring, head)
            if inflight:
                entry[8:16] = struct.pack("=Q", self._counter)
            entry[0] = inflight

    def _recover(self, ring: Ring) -> None:
        """What the record says is in flight is done again, in its order; then the ring goes on behind it."""
        if not self._inflight:
            return
        used = self.u16(ring.used + 2)
        (tracked,) = struct.unpack("=H", self._field(ring, 14))
        if tracked != used:
            (last,) = struct.unpack("=H", self._field(ring, 12))
            self._entry(ring, last)[0] = 0
            self._field(ring, 14)[:] = struct.pack("=H", used)
        heads = [head for head in range(ring.size) if self._entry(ring, head)[0]]
        heads.sort(key=lambda head: bytes(self._entry(ring, head)[8:16])[::-1])
        assert ring.base == used, "the front end starts a ring elsewhere"
        ring.base = (used + len(heads)) % 0x10000
        ring.taken = list(heads)
        for head in heads:
            self._answer(ring, head)
