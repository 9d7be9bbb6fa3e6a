"""One client: the greeting, the negotiation, then its requests in order and the events between them.

Threat: a client sends anything at all, or never reads.  Its input and output are bounded, and the machine
never waits for it: one that lets too much pile up is dropped.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from nemu.backends.output import Output
from nemu.qmp import registry, schema
from nemu.qmp.descriptors import MAX_RECEIVED, Inbox
from nemu.qmp.errors import CommandNotFoundError, QmpError
from nemu.qmp.jsonstream import JsonStream, StreamError, parse
from nemu.qmp.version import VERSION

if TYPE_CHECKING:
    from nemu.qmp.server import Server

# Read at once: what fits holds up the machine for some milliseconds at most.
CHUNK = 4096
OUTPUT_MAX = 1 << 20  # bytes that a client may leave unread
_ANCILLARY = socket.CMSG_SPACE(MAX_RECEIVED * 4)
CAPABILITIES = ("oob",)
_NEGOTIATE = "qmp_capabilities"


class Connection:
    """The client on ``client``, which is owned from now on."""

    def __init__(self, server: Server, client: socket.socket) -> None:
        self.inbox = Inbox()
        self.server = server
        self.negotiated = False
        self.oob = False
        self._client = client
        self._stream = JsonStream()
        client.setblocking(False)
        self._output = Output(
            os.dup(client.fileno()), server.loop, lambda: None, failed=self.close, size=OUTPUT_MAX
        )

    def begin(self) -> None:
        """Greet the client and serve it."""
        self.server.loop.add_reader(self._client.fileno(), self._readable)
        self.send({"QMP": {"version": schema.dump(VERSION), "capabilities": list(CAPABILITIES)}})

    @property
    def closed(self) -> bool:
        return self._client.fileno() < 0

    def send(self, message: dict[str, Any]) -> None:
        """Queue ``message``; a client that has not read enough of what came before is dropped."""
        data = json.dumps(message).encode() + b"\r\n"
        if not self.closed and self._output.write(memoryview(data)) < len(data):
            self.close()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Drop the client, after a try to deliver what it has not read yet.  Idempotent."""
        if self.closed:
            return
        self.server.loop.remove_reader(self._client.fileno())
        self._output.close(drain_seconds)
        self._client.close()
        self.inbox.close()
        self.server.forget(self)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._client.recvmsg(CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self.inbox.receive(list(fds))
        if not data:
            self.close()
            return
        try:
            for text in self._stream.feed(data):
                self._answer(text)
                if self.closed:
                    return
        except StreamError as error:
            self.send(_error(QmpError(f"JSON parse error, {error}")))
            self.close()

    def _answer(self, text: bytes) -> None:
        """Do what ``text`` asks for, and say how it went."""
        answer: dict[str, Any]
        request: Any = None
        try:
            request = _parse(text)
            answer = {"return": self._run(_check(request, oob=self.oob))}
        except QmpError as error:
            answer = _error(error)
        if isinstance(request, dict) and "id" in request:
            answer["id"] = request["id"]
        self.send(answer)

    def _run(self, request: Request) -> Any:
        name = request.name
        if self.negotiated == (name == _NEGOTIATE):
            raise CommandNotFoundError(
                "Capabilities negotiation is already complete, command ignored"
                if self.negotiated
                else f"Expecting capabilities negotiation with '{_NEGOTIATE}'"
            )
        command = registry.find(name)
        if request.ahead and not command.oob:
            raise QmpError(f"The command {name} does not support OOB")
        try:
            return command.run(registry.Call(self.server.session, self), request.arguments)
        except QmpError:
            raise
        except Exception as error:  # a mistake of ours must not take the machine with it
            if os.environ.get("NEMU_DEBUG"):
                raise
            print(f"nemu: QMP command {name}: {type(error).__name__}: {error}", file=sys.stderr)
            raise QmpError(f"internal error: {type(error).__name__}") from error


def _error(error: QmpError) -> dict[str, Any]:
    return {"error": {"class": error.kind, "desc": str(error)}}


def _parse(text: bytes) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise QmpError(f"JSON parse error, {error}") from None


class Request(NamedTuple):
    """A command that a client asks for; ``ahead`` of commands that wait."""

    name: str
    arguments: dict[str, Any]
    ahead: bool


def _check(request: Any, *, oob: bool) -> Request:
    """The command in ``request``, which is any JSON value.  Raises QmpError with QEMU's words."""
    if not isinstance(request, dict):
        raise QmpError("QMP input must be a JSON object")
    names = [key for key in request if key == "execute" or (key == "exec-oob" and oob)]
    for key, value in request.items():
        if key in names and not isinstance(value, str):
            raise QmpError(f"QMP input member '{key}' must be a string")
        if key == "arguments" and not isinstance(value, dict):
            raise QmpError("QMP input member 'arguments' must be an object")
        if key not in (*names, "arguments", "id"):
            raise QmpError(f"QMP input member '{key}' is unexpected")
    if not names:
        raise QmpError("QMP input lacks member 'execute'")
    if len(names) > 1:
        raise QmpError(f"QMP input member '{names[1]}' clashes with '{names[0]}'")
    return Request(request[names[0]], request.get("arguments", {}), names[0] == "exec-oob")
