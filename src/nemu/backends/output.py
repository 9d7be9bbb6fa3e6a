"""Bytes on their way out to a descriptor that may be slow: a pipe, a terminal, a socket."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from nemu.interfaces import EventLoop

BUFFER_SIZE = 64 * 1024  # bytes
DRAIN_SECONDS = 1.0


class Output:
    """Writes to ``fd`` (non-blocking, owned from now on) through a buffer of at most ``size`` bytes.

    ``room`` is called when the buffer has become empty, and when at least half of it is free
    again after ``write`` took less than all.  Once a write fails for good (the reader went away, the
    disk is full) ``failed`` is called, and everything is taken and dropped, since a guest must not
    hang on it.
    """

    def __init__(
        self,
        fd: int,
        loop: EventLoop,
        room: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
        size: int = BUFFER_SIZE,
    ) -> None:
        self.fd = fd
        self._size = size
        self._loop = loop
        self._room = room
        self._failed = failed
        self._pending = bytearray()
        self._owes_room = False
        self._broken = False

    @property
    def pending(self) -> int:
        """Bytes taken and not written yet."""
        return len(self._pending)

    def write(self, data: memoryview) -> int:
        """Take as much of ``data`` as fits now; the number of bytes taken."""
        if self._broken:
            return len(data)
        direct = 0
        if not self._pending:
            direct = self._write(data)
            if self._broken or direct == len(data):
                return len(data)
            self._loop.add_writer(self.fd, self._flush)
        queued = min(len(data) - direct, self._size - len(self._pending))
        self._pending += data[direct : direct + queued]
        self._owes_room = direct + queued < len(data)
        return direct + queued

    def close(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Close ``fd``, after a last short try to deliver what a slow reader has not taken yet."""
        if self.fd < 0:
            return
        deadline = time.monotonic() + drain_seconds
        while self._pending and (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll(left * 1000)
            del self._pending[: self._write(self._pending)]
        self._loop.remove_writer(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._broken = True

    def _flush(self) -> None:
        del self._pending[: self._write(self._pending)]
        if not self._pending:
            self._loop.remove_writer(self.fd)
        if not self._pending or (self._owes_room and len(self._pending) <= self._size // 2):
            self._owes_room = False
            self._room()

    def _write(self, data: memoryview | bytearray) -> int:
        """Write until all is written or the reader is slow; a broken output swallows everything."""
        written = 0
        with memoryview(data) as view:  # released, else a bytearray under it could not shrink
            try:
                while written < len(view):
                    written += os.write(self.fd, view[written:])
            except BlockingIOError:
                return written
            except OSError:
                self._broken = True
                self._loop.call_soon(self._failed)
                return len(view)
        return written
