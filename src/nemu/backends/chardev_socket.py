"""A listening Unix socket as a console: one client at a time, a next one when it has left.

Without a client output is dropped and the guest runs on.
"""

from __future__ import annotations

import os
import socket

from nemu.backends.chardev import Chardev
from nemu.backends.listener import UnixListener
from nemu.backends.output import Output
from nemu.interfaces import EventLoop


class SocketChardev(Chardev):
    """Listens at ``path``.  Raises ConfigError when it cannot."""

    def __init__(self, path: str, option: str, loop: EventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._client: socket.socket | None = None
        self._output: Output | None = None
        self._file = UnixListener(path, option, f"socket={path}")
        self._listener = self._file.socket
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
        self._file.close()

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
