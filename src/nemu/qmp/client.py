"""The other end: a client that waits for each answer, for nemu's own commands and its emulated host."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from nemu.qmp.errors import QmpError


class ClosedError(Exception):
    """The server is gone."""


class QmpClient:
    """Talks to the server on ``connection``, which it owns from now on.  ClosedError when that is none.

    The time-out of ``connection`` holds for each step; then TimeoutError is raised, and the client is of no
    use any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._events: list[dict[str, Any]] = []
        if "QMP" not in self._message():
            raise ClosedError
        self.execute("qmp_capabilities")

    def execute(self, name: str, arguments: Mapping[str, Any] | None = None, fds: Sequence[int] = ()) -> Any:
        """Run a command, with open files; gives its result.  QmpError has the server's class and words."""
        text = json.dumps({"execute": name, "arguments": arguments or {}}).encode() + b"\n"
        try:
            if fds:
                socket.send_fds(self._connection, [text], fds)
            else:
                self._connection.sendall(text)
        except (BrokenPipeError, ConnectionResetError):
            raise ClosedError from None
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                error = QmpError(message["error"]["desc"])
                error.kind = message["error"]["class"]
                raise error
            self._events.append(message)

    def wait_event(self, name: str) -> None:
        """Wait until the server has told of the event ``name``; each one counts once."""
        while True:
            for index, event in enumerate(self._events):
                if event.get("event") == name:
                    del self._events[: index + 1]
                    return
            self._events.append(self._message())

    def next_event(self, seconds: float) -> dict[str, Any] | None:
        """The next event that nobody has taken, None when none comes in ``seconds``."""
        if self._events:
            return self._events.pop(0)
        if not self._buffered() and not select.select([self._connection], [], [], seconds)[0]:
            return None
        return self._message()

    def _buffered(self) -> bool:
        """Whether something is here that came with a message before."""
        patience = self._connection.gettimeout()
        self._connection.setblocking(False)
        try:
            return bool(self._lines.peek(1))
        finally:
            self._connection.settimeout(patience)

    def wait_closed(self, seconds: float | None = None) -> bool:
        """Wait until the server has gone, at most ``seconds``; whether it has."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while deadline is None or (left := deadline - time.monotonic()) > 0:
                if deadline is not None and not select.select([self._connection], [], [], left)[0]:
                    return False
                self._message()
        except ClosedError:
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._lines.close()
        self._connection.close()

    def _message(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line.endswith(b"\n"):
            raise ClosedError
        try:
            message = json.loads(line)
        except ValueError:
            raise ClosedError from None
        return message if isinstance(message, dict) else {}
