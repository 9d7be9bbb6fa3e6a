"""Bytes on their way out to a descriptor that may be slow: a pipe, a terminal, a socket."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from nemu.interfaces import EventLoop

BUFFER_SIZE = 64 * 1024
DRAIN_SECONDS = 1.0


class Output:
    """Writes to ``fd`` (non-blocking, owned from now on) through a buffer of at most BUFFER_SIZE bytes.

    ``room`` is called when at least half of the buffer is free again after ``write`` took less
    than all.  Once a write fails for good (the reader went away, the disk is full) ``failed``
    is called, and everything is taken and dropped, since a guest must not hang on it.
    """

    def __init__(
        self,
        fd: int,
        loop: EventLoop,
        room: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.fd = fd
        self._loop = loop
        self._room = room
        self._failed = failed
        self._pending = bytearray()
        self._owes_room = False
        self._written: Callable[[], None] | None = None
        self._broken = False

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
        queued = min(len(data) - direct, BUFFER_SIZE - len(self._pending))
        self._pending += data[direct : direct + queued]
        self._owes_room = direct + queued < len(data)
        return direct + queued

    def when_written(self, done: Callable[[], None]) -> None:
        """Call ``done`` in a later turn of the loop, once nothing that was taken waits any more."""
        if self._pending:
            self._written = done
        else:
            self._loop.call_soon(done)

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
            if self._written:
                self._loop.call_soon(self._written)
                self._written = None
        if self._owes_room and len(self._pending) <= BUFFER_SIZE // 2:
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
