"""virtio-blk on a disk of the host (virtio 1.2, section 5.2).

Requests are taken in the loop thread.  What the host's page cache has, or takes without waiting, is
copied there and then; for the rest the disk's worker threads move the data straight between the
image and guest RAM and complete the request with the machine lock held.

Threat note: a request is checked here in full, with values copied out of guest RAM once, before
a worker sees it: type, range within the capacity, writable or not.  What the guest changes
later is only its own data.  No more requests are in flight than the queues have entries.
Discard and write-zeroes are bounded in length, so that none keeps a worker for long.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass

from nemu import iovec
from nemu.backends.disk import MAX_CACHED, MAX_DISCARD, MAX_ZEROES, SECTOR, Disk
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.device import MachineLock, Transport, VirtioDevice, again, drain
from nemu.virtio.in_flight import InFlight, Io
from nemu.virtio.queue import Chain, Queue

QUEUE_SIZE = 256
MAX_QUEUES = 4

# 5.2.3 feature bits
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

# 5.2.6 request types and status
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
ID_BYTES = 20
WRITE_ZEROES_FLAG_UNMAP = 1

MAX_DISCARD_SECTORS = MAX_DISCARD // SECTOR
MAX_DISCARD_SEGMENTS = 16
MAX_WRITE_ZEROES_SECTORS = MAX_ZEROES // SECTOR

_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_SEGMENT = struct.Struct("<QII")  # sector, num_sectors, flags
# 5.2.4: capacity, size_max, seg_max, geometry (3), blk_size, topology (4), writeback, unused,
# num_queues, discard (3), write zeroes (2), write_zeroes_may_unmap, unused
_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")


class _RefusedError(Exception):
    """The request is answered with ``status`` and does no I/O."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


@dataclass(slots=True)
class _Active:
    """One activation, which lives until its last I/O has ended."""

    features: int
    queues: tuple[Queue | None, ...]
    transport: Transport
    in_flight: InFlight


@dataclass(slots=True)
class _Request:
    """A request on its way: where its status goes, and how many bytes of data it gives the guest."""

    active: _Active
    queue: Queue
    head: int
    status: memoryview
    data: int = 0

    def complete(self, result: int) -> None:
        self.status[0] = result
        self.queue.push(self.head, 1 + (self.data if result == S_OK else 0))


class VirtioBlk(VirtioDevice):
    """A disk with ``queues`` request queues.  ``serial`` is at most 20 bytes of ASCII."""

    device_id = 2

    def __init__(
        self, name: str, disk: Disk, lock: MachineLock, loop: EventLoop, *, queues: int = 1, serial: str = ""
    ) -> None:
        queues = min(queues, MAX_QUEUES)
        sectors = disk.size // SECTOR
        super().__init__(name, _config(sectors, queues))
        self.queue_sizes = (QUEUE_SIZE,) * queues
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ
        self.features |= F_RO if disk.readonly else F_DISCARD | F_WRITE_ZEROES
        self._disk = disk
        self._lock = lock
        self._loop = loop
        self._sectors = sectors
        self._serial = serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._active: _Active | None = None

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._active = _Active(features, queues, transport, InFlight(self._lock))

    def notify(self, index: int) -> None:
        active = self._active
        queue = active.queues[index] if active and index < len(active.queues) else None
        if active and queue and drain(queue, lambda chain: self._start(active, queue, chain)):
            again(self._loop, active.transport, self.notify, index)

    def deactivate(self, done: Callable[[], None]) -> None:
        active, self._active = self._active, None
        if active:
            active.in_flight.end(done)
        else:
            done()

    def _start(self, active: _Active, queue: Queue, chain: Chain) -> bool:
        """Hand the request in ``chain`` to a worker, or complete it at once.  Raises GuestError."""
        header = iovec.gather(chain.readable, _HEADER.size)
        if len(header) < _HEADER.size or not chain.writable:
            raise GuestError("a block request without a header or without room for its status")
        kind, _, sector = _HEADER.unpack(header)
        incoming = iovec.but_last(chain.writable)  # 5.2.6: the status is the last byte
        request = _Request(active, queue, chain.head, chain.writable[-1][-1:])
        try:
            io = self._request(request, kind, sector, chain.readable, incoming)
        except _RefusedError as refused:
            request.complete(refused.status)
            return True
        if io is None:
            request.complete(S_OK)
        else:
            active.in_flight.submit(self._disk, io, lambda error: self._finish(request, error))
        return True

    def _request(
        self, request: _Request, kind: int, sector: int, readable: iovec.Iovec, incoming: iovec.Iovec
    ) -> Io | None:
        """The I/O that ``request`` needs, None for none.  Raises _RefusedError."""
        disk = self._disk
        sync = not request.active.features & F_FLUSH  # 5.2.6.2: then the driver has no other way
        if kind == T_IN:
            request.data = iovec.size(incoming)
            offset = self._offset(sector, request.data)
            if request.data <= MAX_CACHED and disk.read_cached(incoming, offset):
                return None
            return lambda: disk.read(incoming, offset)
        if kind == T_OUT:
            self._need_writable()
            outgoing = iovec.skip(readable, _HEADER.size)
            size = iovec.size(outgoing)
            offset = self._offset(sector, size)
            if not sync and size <= MAX_CACHED and disk.write_cached(outgoing, offset):
                return None
            return lambda: disk.write(outgoing, offset, sync=sync)
        if kind == T_FLUSH:
            return None if disk.readonly else disk.flush
        if kind == T_GET_ID:
            request.data = iovec.scatter(incoming, self._serial)
            return None
        if kind == T_DISCARD:
            return self._discard(readable)
        if kind == T_WRITE_ZEROES:
            return self._write_zeroes(readable, sync)
        raise _RefusedError(S_UNSUPP)

    def _discard(self, readable: iovec.Iovec) -> Io:
        segments = self._segments(readable, MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS)
        if any(flags for _, _, flags in segments):
            raise _RefusedError(S_UNSUPP)  # 5.2.6.2: also for the unmap flag

        def io() -> None:
            for offset, length, _ in segments:
                self._disk.discard(offset, length)

        return io

    def _write_zeroes(self, readable: iovec.Iovec, sync: bool) -> Io:
        ((offset, length, flags),) = self._segments(readable, 1, MAX_WRITE_ZEROES_SECTORS)
        if flags & ~WRITE_ZEROES_FLAG_UNMAP:
            raise _RefusedError(S_UNSUPP)

        def io() -> None:
            self._disk.write_zeroes(offset, length, unmap=bool(flags))
            if sync:
                self._disk.flush()

        return io

    def _segments(self, readable: iovec.Iovec, count: int, sectors: int) -> list[tuple[int, int, int]]:
        """(offset, length, flags) of 1 to ``count`` segments of at most ``sectors``; raises _RefusedError."""
        self._need_writable()
        data = iovec.gather(iovec.skip(readable, _HEADER.size), _SEGMENT.size * count + 1)
        if not data or len(data) % _SEGMENT.size:
            raise _RefusedError(S_IOERR)
        segments = []
        for sector, number, flags in _SEGMENT.iter_unpack(data):
            if not 0 < number <= sectors:
                raise _RefusedError(S_IOERR)
            segments.append((self._offset(sector, number * SECTOR), number * SECTOR, flags))
        return segments

    def _need_writable(self) -> None:
        if self._disk.readonly:
            raise _RefusedError(S_IOERR)  # 5.2.6.2

    def _offset(self, sector: int, length: int) -> int:
        """The byte offset of ``sector`` for a transfer of ``length`` bytes.  Raises _RefusedError."""
        if length % SECTOR or sector + length // SECTOR > self._sectors:
            raise _RefusedError(S_IOERR)
        return sector * SECTOR

    @staticmethod
    def _finish(request: _Request, error: OSError | None) -> None:
        if error is None:
            request.complete(S_OK)
        else:
            request.complete(S_UNSUPP if error.errno == errno.EOPNOTSUPP else S_IOERR)
        request.queue.flush()


def _config(sectors: int, queues: int) -> bytes:
    physical_exponent = 3 if sectors % 8 == 0 else 0  # 4 KiB, as most disks and file systems have
    return _CONFIG.pack(
        *(sectors, 0, QUEUE_SIZE - 2),  # a header and a status descriptor go with the data
        *(0, 0, 0),
        SECTOR,
        *(physical_exponent, 0, 0, 0),
        *(1, queues),
        *(MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, 1),
        *(MAX_WRITE_ZEROES_SECTORS, 1, 1),
    )
