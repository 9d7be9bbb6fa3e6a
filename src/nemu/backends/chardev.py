"""Where a console's bytes go and come from: the common side of every character backend.

A backend is opened once in a run and outlives the machine, which is built anew at each
reboot: the frontend of each machine attaches in its turn.  Input is pulled (``read``), so a
guest that takes none leaves it in the pipe or socket it comes from; output is taken up to a
bounded buffer (``write``), and the frontend is told when there is room again.  Nothing here
ever blocks the loop on a slow reader.

All calls are made with the machine lock held.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from nemu.backends.output import Output
from nemu.config.chardev import ChardevConfig
from nemu.errors import ConfigError
from nemu.interfaces import ChardevInfo, EventLoop


class Frontend(Protocol):
    """What a backend tells the device that is attached to it."""

    def readable(self) -> None:
        """``read`` may give something now."""
        ...

    def writable(self) -> None:
        """``write`` takes something again, after it did not take all."""
        ...

    def changed(self) -> None:
        """``size`` or ``connected`` changed."""
        ...


class Chardev(ABC):
    """A character backend with at most one frontend."""

    def __init__(self) -> None:
        self.frontend: Frontend | None = None

    def attach(self, frontend: Frontend) -> None:
        """From now on ``frontend`` is told what happens; it then reads what waits already."""
        self.frontend = frontend

    def detach(self) -> None:
        """Nobody is told any more.  Allowed when nobody was."""
        self.frontend = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(columns, rows) of the terminal behind it, None when there is none."""
        return None

    @property
    def connected(self) -> bool:
        """Whether somebody is at the other end.  What has left is found out by reading from it."""
        return True

    @abstractmethod
    def read(self, limit: int) -> bytes:
        """At most ``limit`` (>= 1) bytes of input; b"" when there is none, then ``readable`` follows."""

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """Take output; the number of bytes taken.  Less than all: ``writable`` follows."""

    def ended(self) -> None:  # noqa: B027
        """The guest closed its end, and all that it had written has been taken.  It may open it again."""

    def close(self) -> None:
        """Give everything back: terminal mode, socket file, descriptors.  Idempotent."""
        self.detach()

    def _readable(self) -> None:
        if self.frontend:
            self.frontend.readable()

    def _writable(self) -> None:
        if self.frontend:
            self.frontend.writable()

    def _changed(self) -> None:
        if self.frontend:
            self.frontend.changed()


class NullChardev(Chardev):
    """No input; output vanishes."""

    def read(self, limit: int) -> bytes:
        return b""

    def write(self, data: memoryview) -> int:
        return len(data)


class FileChardev(Chardev):
    """Output into a file, emptied when it is opened and appended to over reboots; no input."""

    def __init__(self, path: str, option: str, loop: EventLoop) -> None:
        super().__init__()
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK, 0o644)
        except OSError as error:
            why = "a FIFO without a reader" if error.errno == errno.ENXIO else error.strerror
            raise ConfigError(option, f"file={path}", f"cannot open it for writing: {why}") from error
        self._output = Output(fd, loop, self._writable)

    def read(self, limit: int) -> bytes:
        return b""

    def write(self, data: memoryview) -> int:
        return self._output.write(data)

    def close(self) -> None:
        super().close()
        self._output.close()


def describe(label: str, config: ChardevConfig, chardev: Chardev) -> ChardevInfo:
    """``chardev``, which was opened as ``config`` says, for management."""
    kind = "unix" if config.kind == "socket" else config.kind
    where = f"{kind}:{config.path}" if config.path else kind
    return ChardevInfo(label, where, chardev.frontend is not None)


def open_chardev(
    config: ChardevConfig, loop: EventLoop, leave: Callable[[], None], option: str = "--console"
) -> Chardev:
    """Open the backend that ``config`` names; ``option`` is what error messages call it.

    ``leave`` is called when the user asks to leave (Ctrl-A X on a terminal).  Raises ConfigError.
    """
    match config.kind:
        case "null" | "off":
            return NullChardev()
        case "file":
            return FileChardev(config.path, option, loop)
        case "socket":
            from nemu.backends.chardev_socket import SocketChardev

            return SocketChardev(config.path, option, loop)
        case "stdio":
            from nemu.backends.stdio import StdioChardev

            return StdioChardev(loop, leave, option)
        case kind:
            raise ConfigError(option, kind, "must be stdio, null, file=PATH or socket=PATH")
