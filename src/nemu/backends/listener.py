"""A listening Unix socket at a path: taken over from a process that died, removed when it is closed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from nemu.errors import ConfigError


def remove_stale(path: str, option: str, value: str) -> None:
    """Remove a socket that nobody listens on any more; refuse one in use and any other file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(option, value, "exists and is not a socket")
    except FileNotFoundError:
        return
    if is_served(path):
        raise ConfigError(option, value, "is in use by another program")
    os.unlink(path)


def is_served(path: str) -> bool:
    """Whether somebody listens on the socket at ``path``.  Raises OSError where that cannot be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    return True


class UnixListener:
    """Listens at ``path``.  Raises ConfigError, which calls it ``value`` of ``option``, when it cannot."""

    def __init__(self, path: str, option: str, value: str, backlog: int = 4) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            remove_stale(path, option, value)
            self.socket.bind(path)
            self._identity = self._file_identity()
            self.socket.listen(backlog)
        except OSError as error:
            self.socket.close()
            why = error.strerror or str(error)
            raise ConfigError(option, value, f"cannot listen: {why}") from error
        except ConfigError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        with contextlib.suppress(OSError):
            # Not another's socket that has taken the name in the meantime.
            if self._file_identity() == self._identity:
                os.unlink(self.path)

    def _file_identity(self) -> tuple[int, int]:
        status = os.lstat(self.path)
        return status.st_dev, status.st_ino
