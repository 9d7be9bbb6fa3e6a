"""Standard input, output and error as streams of their own, without a terminal between."""

from __future__ import annotations

import os
from collections.abc import Callable

from nemu.backends.chardev import Chardev
from nemu.backends.output import Output
from nemu.backends.stdio import is_our_terminal, nonblocking
from nemu.interfaces import EventLoop


class InputStream(Chardev):
    """What ``fd`` brings, read only as the guest takes it; connected until its end."""

    def __init__(self, fd: int, loop: EventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._fd = -1
        try:
            if is_our_terminal(fd) or not os.isatty(fd):
                self._fd = nonblocking(fd, os.O_RDONLY)
        except OSError:
            pass  # closed: nothing comes

    @property
    def connected(self) -> bool:
        return self._fd >= 0

    def read(self, limit: int) -> bytes:
        if self._fd < 0:
            return b""
        try:
            data = os.read(self._fd, limit)
        except BlockingIOError:
            self._loop.add_reader(self._fd, self._input_ready)
            return b""
        except OSError:
            data = b""
        if not data:
            self._end()
            self._changed()
        return data

    def write(self, data: memoryview) -> int:
        return len(data)

    def close(self) -> None:
        super().close()
        self._end()

    def _input_ready(self) -> None:
        self._loop.remove_reader(self._fd)  # until the guest wants more than it gets now
        self._readable()

    def _end(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class OutputStream(Chardev):
    """Everything goes to ``fd``.

    ``done`` is called when all is written that the guest had to say, and ``broken`` when nobody reads it
    any more; then the rest is dropped.
    """

    def __init__(
        self, fd: int, loop: EventLoop, done: Callable[[], None], broken: Callable[[], None]
    ) -> None:
        super().__init__()
        self._done = done
        self._ending = False
        try:
            own = nonblocking(fd, os.O_WRONLY)
        except OSError:  # closed: as good as
            own = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._output = Output(own, loop, self._room, broken)

    def read(self, limit: int) -> bytes:
        return b""

    def write(self, data: memoryview) -> int:
        return self._output.write(data)

    def ended(self) -> None:
        self._ending = True
        self._room()

    def close(self) -> None:
        super().close()
        self._output.close()

    def _room(self) -> None:
        if self._ending and not self._output.pending:
            self._ending = False
            self._done()
        self._writable()
