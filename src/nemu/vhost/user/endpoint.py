"""Where back ends are: at a socket of the user's, or in a program that nemu starts (frontend.Endpoint)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from nemu.errors import HostError

if TYPE_CHECKING:
    from nemu.backends.child import Child


def _connect(path: str) -> socket.socket:
    """Raises OSError when nobody listens there now."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


class SocketEndpoint:
    """A back end that listens at ``path``, and comes and goes as its owner likes."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._path = path

    def connect(self) -> socket.socket:
        return _connect(self._path)

    def alarm(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def lost(self) -> None:
        """It is not ours to end."""

    def close(self) -> None:
        """Nor here."""


class PrivateListener:
    """A listening Unix socket without a path, so that nobody else can connect and nothing is left behind.

    ``fd`` is for the program that accepts.
    """

    def __init__(self) -> None:
        folder = os.path.join(
            os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp",
            f"nemu-{os.getpid()}-{os.urandom(8).hex()}",
        )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.mkdir(folder, 0o700)
            try:
                path = os.path.join(folder, "s")
                self._listener.bind(path)
                self._listener.listen(1)
                # The name goes; through this descriptor the socket is still found.
                self._place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                os.unlink(path)
            finally:
                os.rmdir(folder)
        except OSError as error:
            self._listener.close()
            raise HostError(f"cannot make a socket in {os.path.dirname(folder)}: {error.strerror}") from error

    @property
    def fd(self) -> int:
        return self._listener.fileno()

    def connect(self) -> socket.socket:
        return _connect(f"/proc/self/fd/{self._place}")

    def close(self) -> None:
        self._listener.close()
        os.close(self._place)


class ChildEndpoint:
    """A back end in ``child``, which accepts on ``listener``.  Owns both.

    It is started when a connection is wanted and it does not run, and ended when one is lost.
    """

    def __init__(self, child: Child, listener: PrivateListener) -> None:
        self.name = child.name
        self._child = child
        self._listener = listener

    def connect(self) -> socket.socket:
        if self._child.pidfd < 0:
            self._child.start()
        return self._listener.connect()

    def alarm(self) -> int:
        return self._child.pidfd

    def last_words(self) -> str:
        return self._child.last_words()

    def lost(self) -> None:
        self._child.kill()

    def close(self) -> None:
        self._child.close()
        self._listener.close()
