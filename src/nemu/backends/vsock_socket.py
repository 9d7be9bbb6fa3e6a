"""The host's side of a virtio socket device without the host kernel's: Unix sockets.

The convention is that of Firecracker and Cloud Hypervisor.  A program of the host connects to PATH, sends
``CONNECT <port>\\n`` and gets ``OK <its own port>\\n`` once a program of the guest has accepted; else
the connection is closed.  A program of the guest that connects to port P of the host is
connected to whoever listens at the Unix socket ``PATH_P``.

Threat note: clients are strangers.  Their number is bounded, the others wait in the backlog; the first
line of each is bounded in length and time, and not a byte behind it is read before the guest accepts.
"""

from __future__ import annotations

import re
import socket
import time
from functools import partial
from typing import Protocol

from nemu.backends.acceptor import Acceptor
from nemu.backends.listener import UnixListener
from nemu.backends.stream import Stream
from nemu.interfaces import EventLoop, Timer

MAX_STREAMS = 256  # connections of any kind at once; the usual limit of descriptors is 1024
BACKLOG = 64
BUFFER = 128 * 1024  # bytes from the guest on their way to one client
LINE_MAX = 32  # bytes
LINE_SECONDS = 10.0
DRAIN_SECONDS = 1.0  # at the end, for all clients together
_CONNECT = re.compile(rb"CONNECT (\d{1,10})\r?\n", re.IGNORECASE)
_PORT_ANY = 0xFFFF_FFFF  # no port (linux/vm_sockets.h)


def parse_connect(line: bytes) -> int | None:
    """The port of ``CONNECT <port>\\n``; None for anything else."""
    found = _CONNECT.fullmatch(line)
    port = int(found[1]) if found else _PORT_ANY
    return port if port < _PORT_ANY else None


class Frontend(Protocol):
    """The device of the current machine."""

    def connect(self, port: int, stream: Stream) -> None:
        """A client asks for ``port`` of the guest.  The stream is the device's from now on."""
        ...


class VsockSocket:
    """Listens at ``path``.  Raises ConfigError when it cannot."""

    def __init__(self, path: str, loop: EventLoop, option: str = "--vsock") -> None:
        self._path = path
        self._loop = loop
        self._frontend: Frontend | None = None
        self._streams: set[Stream] = set()
        self._greetings: dict[_Greeting, Timer] = {}
        self._listener = UnixListener(path, option, f"socket={path}", BACKLOG)
        self._acceptor = Acceptor(self._listener.socket, loop, self._accept)

    def attach(self, frontend: Frontend) -> None:
        """Let clients in, for ``frontend``."""
        self._frontend = frontend
        self._admit()

    def detach(self) -> None:
        """Clients wait in the backlog again; those that have not said what they want are sent away."""
        self._frontend = None
        self._acceptor.pause()
        for greeting in list(self._greetings):
            self.dismiss(greeting)

    def open(self, port: int) -> Stream | None:
        """A connection to the program that listens for the guest's ``port``; None when there is none."""
        if len(self._streams) >= MAX_STREAMS:
            return None
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            client.connect(f"{self._path}_{port}")  # at once, or not at all: its backlog is full
        except OSError:
            client.close()
            return None
        return self._stream(client)

    def close(self) -> None:
        """Give everything back.  Clients get what is still on its way to them, if they take it soon."""
        self.detach()
        self._listener.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        for stream in list(self._streams):
            stream.close(max(0.0, deadline - time.monotonic()))

    def greeted(self, greeting: _Greeting, port: int) -> None:
        """A client has asked for ``port``."""
        self._forget(greeting)
        assert self._frontend
        self._frontend.connect(port, greeting.stream)

    def dismiss(self, greeting: _Greeting) -> None:
        """Send a client away."""
        self._forget(greeting)
        greeting.stream.close()

    def _accept(self, client: socket.socket) -> None:
        greeting = _Greeting(self, self._stream(client))
        self._greetings[greeting] = self._loop.call_later(LINE_SECONDS, partial(self.dismiss, greeting))

    def _forget(self, greeting: _Greeting) -> None:
        self._greetings.pop(greeting).cancel()

    def _stream(self, client: socket.socket) -> Stream:
        stream = Stream(client, self._loop, self._ended, BUFFER)
        self._streams.add(stream)
        self._admit()
        return stream

    def _ended(self, stream: Stream) -> None:
        self._streams.discard(stream)
        self._admit()

    def _admit(self) -> None:
        """Accept clients while there is room for one."""
        if self._frontend and len(self._streams) < MAX_STREAMS:
            self._acceptor.resume()
        else:
            self._acceptor.pause()


class _Greeting:
    """A client that has not yet said all of its first line."""

    def __init__(self, backend: VsockSocket, stream: Stream) -> None:
        self.stream = stream
        self._backend = backend
        self._line = b""
        stream.user = self
        stream.watch(True)

    def readable(self) -> None:
        """Take the line and no more: what follows is the guest's."""
        try:
            seen = self.stream.peek(LINE_MAX - len(self._line))
        except BlockingIOError:
            return
        part = seen[: seen.find(b"\n") + 1] or seen
        if part:
            self.stream.read([memoryview(bytearray(len(part)))])
        self._line += part
        if self._line.endswith(b"\n") or not part or len(self._line) == LINE_MAX:
            port = parse_connect(self._line)
            if port is None:
                self._backend.dismiss(self)
            else:
                self.stream.watch(False)
                self._backend.greeted(self, port)

    def drained(self) -> None:
        """Nothing is written before the guest accepts."""

    def failed(self) -> None:
        """The same."""
