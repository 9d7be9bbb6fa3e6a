"""virtio-pmem: a file of the host as memory of the guest (virtio 1.2, section 5.19).

The data never passes through here: the guest reads and writes the host's page cache.  What is left is the
one request there is, a flush, which makes what the guest has stored durable.

Threat note: a guest may ask for flushes as fast as it can.  One at a time is done, by a worker thread, and
answers all requests that had come before it began; no more of them wait than the queue has entries.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from nemu import iovec
from nemu.backends.disk import Disk
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.device import MachineLock, Transport, VirtioDevice, again, drain
from nemu.virtio.queue import Chain, Queue

# 5.19.6: struct virtio_pmem_req and virtio_pmem_resp, one 32-bit number each
T_FLUSH = 0
RESP_OK, RESP_EIO = 0, 1
_NUMBER = struct.Struct("<I")
_CONFIG = struct.Struct("<QQ")  # 5.19.4: start, size


class _Request(NamedTuple):
    head: int
    answer: iovec.Iovec  # the first four of its writable bytes


@dataclass(slots=True)
class _Active:
    """One activation.  ``done`` is set once it is over; it outlives that until no flush is under way."""

    queue: Queue
    transport: Transport
    waiting: list[_Request] = field(default_factory=list)
    flushing: bool = False
    resuming: bool = False  # the loop comes back by itself
    done: Callable[[], None] | None = None

    def answer(self, requests: list[_Request], result: int) -> None:
        for request in requests:
            self.queue.push(request.head, iovec.scatter(request.answer, _NUMBER.pack(result)))
        self.queue.flush()


class VirtioPmem(VirtioDevice):
    """Flushes ``disk``, which is the guest's memory at ``gpa``."""

    device_id = 27
    queue_sizes = (128,)
    features = 0

    def __init__(self, name: str, disk: Disk, gpa: int, lock: MachineLock, loop: EventLoop) -> None:
        super().__init__(name, _CONFIG.pack(gpa, disk.size))
        self._disk = disk
        self._lock = lock
        self._loop = loop
        self._active: _Active | None = None

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        queue = queues[0]
        self._active = _Active(queue, transport) if queue else None

    def notify(self, index: int) -> None:
        active = self._active
        if active is None or active.resuming:
            return
        more = drain(active.queue, lambda chain: self._take(active, chain))
        self._flush(active)
        if more:
            active.resuming = True
            again(self._loop, active.transport, lambda: self._resume(active))

    def _resume(self, active: _Active) -> None:
        active.resuming = False
        if active is self._active:
            self.notify(0)

    def deactivate(self, done: Callable[[], None]) -> None:
        active, self._active = self._active, None
        if active and active.flushing:
            active.done = done
        else:
            done()

    def _take(self, active: _Active, chain: Chain) -> bool:
        kind = iovec.gather(chain.readable, _NUMBER.size)
        request = _Request(chain.head, iovec.take(chain.writable, _NUMBER.size))
        if len(kind) < _NUMBER.size or iovec.size(request.answer) < _NUMBER.size:
            raise GuestError("a persistent memory request without a type or without room for its answer")
        if kind != _NUMBER.pack(T_FLUSH) or self._disk.readonly:
            # Nothing that was stored in a read-only one is anywhere: to call that durable would be a lie.
            active.answer([request], RESP_EIO)
        else:
            active.waiting.append(request)
        return True

    def _flush(self, active: _Active) -> None:
        """Start a flush for all that wait, unless one is under way: that one began before they came."""
        if active.waiting and not active.flushing:
            requests, active.waiting = active.waiting, []
            active.flushing = True
            self._disk.submit(lambda: self._work(active, requests))

    def _work(self, active: _Active, requests: list[_Request]) -> None:
        """In a worker thread."""
        result = RESP_OK
        try:
            self._disk.flush()  # fdatasync writes what was stored through any mapping of the file
        except OSError:
            result = RESP_EIO
        with self._lock:
            active.flushing = False
            if active.done is not None:
                active.done()
                return
            active.answer(requests, result)
            self._flush(active)
