"""A listening Unix socket as a console: one client at a time, a next one when it has left.

Without a client output is dropped and the guest runs on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from nemu.backends.chardev import Chardev
from nemu.backends.output import Output
from nemu.errors import ConfigError
from nemu.interfaces import EventLoop


def remove_stale(path: str, option: str) -> None:
    """Remove a socket that nobody listens on any more; refuse one in use and any other file."""
    value = f"socket={path}"
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(option, value, "exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise ConfigError(option, value, "is in use by another program")


class SocketChardev(Chardev):
    """Listens at ``path``.  Raises ConfigError when it cannot."""

    def __init__(self, path: str, option: str, loop: EventLoop) -> None:
        super().__init__()
        self._path = path
        self._loop = loop
        self._client: socket.socket | None = None
        self._output: Output | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            remove_stale(path, option)
            self._listener.bind(path)
            self._identity = self._file_identity()
            self._listener.listen(4)
        except OSError as error:
            self._listener.close()
            why = error.strerror or str(error)
            raise ConfigError(option, f"socket={path}", f"cannot listen: {why}") from error
        except ConfigError:
            self._listener.close()
            raise
        loop.add_reader(self._listener.fileno(), self._accept)

    @property
    def connected(self) -> bool:
        return self._client is not None

    def read(self, limit: int) -> bytes:
        if self._client is None:
            return b""
        try:
            data = self._client.recv(limit)
        except BlockingIOError:
            self._loop.add_reader(self._client.fileno(), self._input_ready)
            return b""
        except OSError:
            data = b""
        if not data:
            self._drop(self._client)
        return data

    def write(self, data: memoryview) -> int:
        return self._output.write(data) if self._output else len(data)

    def close(self) -> None:
        super().close()
        if self._listener.fileno() < 0:
            return
        self._drop(self._client)
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            # Not another's socket that has taken the name in the meantime.
            if self._file_identity() == self._identity:
                os.unlink(self._path)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        client.setblocking(False)
        self._loop.remove_reader(self._listener.fileno())  # the next one waits in the backlog
        self._client = client
        self._output = Output(os.dup(client.fileno()), self._loop, self._writable, lambda: self._drop(client))
        self._changed()
        self._readable()

    def _drop(self, client: socket.socket | None) -> None:
        """``client`` left; nothing when that is known already and the next one is there."""
        if client is not self._client or self._client is None or self._output is None:
            return
        self._loop.remove_reader(self._client.fileno())
        self._output.close(drain_seconds=0)
        self._client.close()
        self._client = self._output = None
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._changed()
        self._loop.call_soon(self._writable)

    def _input_ready(self) -> None:
        if self._client:
            self._loop.remove_reader(self._client.fileno())
            self._readable()

    def _file_identity(self) -> tuple[int, int]:
        status = os.lstat(self._path)
        return status.st_dev, status.st_ino
