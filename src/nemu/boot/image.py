"""Where the bytes of a kernel or an initrd come from."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import Protocol, Self

from nemu.errors import ConfigError

PEEK_SIZE = 64 << 10  # every header we look at lies within this many bytes of an image's start


class Source(Protocol):
    """An image that is read from front to back: a file, or a payload as it is unpacked."""

    def peek(self) -> bytes:
        """The first bytes, at most PEEK_SIZE, without moving on.  Call it before ``read_at``."""
        ...

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; a later call never goes backwards."""
        ...

    def error(self, problem: str) -> ConfigError:
        """The error that names this image."""
        ...


class ImageFile:
    """A regular file that the user named by ``option``; a Source that may also go backwards.

    Raises ConfigError for everything else that a path can be: missing, a directory, a FIFO,
    a device, not readable, empty.
    """

    def __init__(self, option: str, path: str) -> None:
        self.option = option
        self.path = path
        self._fd = -1
        try:
            # A FIFO would block without O_NONBLOCK; on regular files it has no effect.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            raise self.error(
                os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            ) from error
        self.size = status.st_size
        problem = _problem(status)
        if problem:
            self.close()
            raise self.error(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def error(self, problem: str) -> ConfigError:
        shown = self.path if self.path.isprintable() else repr(self.path)  # the message stays one line
        return ConfigError(self.option, shown, problem)

    def peek(self) -> bytes:
        return self.read(0, PEEK_SIZE)

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer at the end of the file."""
        if offset >= self.size:  # also what no off_t can hold
            return b""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise self.error(f"cannot be read: {os.strerror(error.errno or 0)}") from error

    def read_at(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self.error(f"cannot be read: {os.strerror(error.errno or 0)}") from error
            if not count:
                raise self.error("is truncated")
            done += count


def _problem(status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return "" if status.st_size else "is empty"
