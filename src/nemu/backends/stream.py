"""A connected stream socket of the host: read when asked, written through a bounded buffer."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from nemu.backends.output import Output
from nemu.interfaces import EventLoop


class StreamUser(Protocol):
    """What a stream tells whoever uses it."""

    def readable(self) -> None:
        """``read`` may give something now, or the end."""
        ...

    def drained(self) -> None:
        """``pending`` has become 0 after it was not."""
        ...

    def failed(self) -> None:
        """The peer is gone: what is written from now on is lost."""
        ...


class Stream:
    """``client`` (non-blocking, owned from now on), with at most ``size`` bytes on their way to it.

    ``ended`` is called once, when it is closed.  Nothing is read before ``watch(True)``.
    """

    def __init__(
        self, client: socket.socket, loop: EventLoop, ended: Callable[[Stream], None], size: int
    ) -> None:
        self.user: StreamUser | None = None
        self._socket = client
        self._loop = loop
        self._ended = ended
        self._output = Output(client.fileno(), loop, self._room, self._failed, size=size)
        self._watching = False
        self._finishing = False  # no more is written: the peer shall see the end behind what is pending
        self._lingering = False  # nobody uses it any more: it closes behind what is pending

    @property
    def pending(self) -> int:
        """Bytes that were written here and that the socket has not taken yet."""
        return self._output.pending

    @property
    def hung_up(self) -> bool:
        """Whether the peer has closed both directions; its end alone may be a half-close."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def watch(self, wanted: bool) -> None:
        """Tell the user when there is something to read, or not."""
        if wanted != self._watching:
            self._watching = wanted
            if wanted:
                self._loop.add_reader(self._socket.fileno(), self._readable)
            else:
                self._loop.remove_reader(self._socket.fileno())

    def read(self, views: Sequence[memoryview]) -> int:
        """Fill ``views`` (not empty) from the start; the number of bytes, 0 at the end.

        Raises BlockingIOError when there are none now.
        """
        try:
            return os.readv(self._socket.fileno(), views)
        except BlockingIOError:
            raise
        except OSError:  # ECONNRESET: the peer left without reading
            return 0

    def peek(self, limit: int) -> bytes:
        """At most ``limit`` bytes that ``read`` would give, b"" at the end.  Raises BlockingIOError."""
        try:
            return self._socket.recv(limit, socket.MSG_PEEK)
        except BlockingIOError:
            raise
        except OSError:
            return b""

    def write(self, views: Sequence[memoryview]) -> bool:
        """Send ``views``; False when they do not fit into the buffer: then some of them are lost."""
        return all(self._output.write(view) == len(view) for view in views)

    def finish(self) -> None:
        """The peer sees the end once it has all that was written."""
        self._finishing = True
        if not self.pending:
            self._shutdown(socket.SHUT_WR)

    def refuse(self) -> None:
        """Nothing more is read: the peer cannot send any more."""
        self.watch(False)
        self._shutdown(socket.SHUT_RD)

    def linger(self) -> None:
        """The user is done with it; it closes as soon as the peer has all that was written."""
        self.user = None
        self._lingering = True
        self.watch(False)
        if not self.pending:
            self.close()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Close, after at most ``drain_seconds`` for what is pending.  Idempotent."""
        if self._socket.fileno() < 0:
            return
        self.user = None
        self.watch(False)
        self._socket.detach()  # the descriptor is the output's
        self._output.close(drain_seconds)
        self._ended(self)

    def _readable(self) -> None:
        if self.user:
            self.user.readable()

    def _room(self) -> None:
        if self._lingering:
            if not self.pending:
                self.close()
            return
        if self._finishing and not self.pending:
            self._shutdown(socket.SHUT_WR)
        if self.user:
            self.user.drained()

    def _failed(self) -> None:
        if self._lingering:
            self.close()
        elif self.user:
            self.user.failed()

    def _shutdown(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:  # the peer is gone, which reading or writing tells
            pass
