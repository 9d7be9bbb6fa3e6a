"""One connection to a back end, and the scripts that run on it.

A script is a generator: it yields requests that may be sent together, gets their replies, and returns what
it found out.  It knows no socket, and is written once for both ways to run it: on the event loop
(nothing ever blocks there), or with the caller waiting, before the guest runs.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from nemu.interfaces import EventLoop, Timer
from nemu.vhost.user import message
from nemu.vhost.user.message import BackendError, Inbox, Message, Request

T = TypeVar("T")
# Requests in, their replies in the same order out; of those without one only where acknowledged, and unseen.
Script = Generator[Sequence[Request], Sequence[Message], T]

PATIENCE = 5.0  # seconds that a back end has for a whole script
_RECEIVE = 8192  # bytes in one go
_ROOM_FOR_FDS = socket.CMSG_SPACE(4 * message.MAX_FDS)


def receive(connection: socket.socket, inbox: Inbox) -> None:
    """Put what is there into ``inbox``.  Raises BackendError, EOFError at the end, and BlockingIOError."""
    try:
        data, ancillary, flags, _ = connection.recvmsg(_RECEIVE, _ROOM_FOR_FDS, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise BackendError(f"is lost: {error.strerror}") from error
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"={len(payload) // 4}i", payload[: len(payload) & -4])
    inbox.add(data, fds)
    if flags & socket.MSG_CTRUNC:
        raise BackendError(f"sends more than {message.MAX_FDS} descriptors")
    if not data:
        raise EOFError


class Channel:
    """Runs scripts on ``connection``, which it owns, one after the other.

    ``lost`` is called once, with the reason, when the back end is gone, breaks the protocol, or is silent
    for PATIENCE; no ``done`` is called any more then.  All calls with the machine lock held.
    """

    def __init__(
        self, connection: socket.socket, loop: EventLoop, lost: Callable[[BackendError], None]
    ) -> None:
        connection.setblocking(False)
        self.acknowledged = False  # REPLY_ACK is negotiated
        self._socket = connection
        self._loop = loop
        self._lost = lost
        self._inbox = Inbox()
        self._scripts: deque[tuple[Script[Any], Callable[[Any], None]]] = deque()
        self._current: tuple[Script[Any], Callable[[Any], None]] | None = None
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._pending: deque[Request] = deque()  # whose replies have not come
        self._replies: list[Message] | None = None  # None before a script's first step
        self._timer: Timer | None = None
        self._hung_up: Callable[[], None] | None = None
        self._open = True
        loop.add_reader(connection.fileno(), self._guarded_receive)

    @property
    def busy(self) -> bool:
        return self._open and self._current is not None

    def run(self, script: Script[T], done: Callable[[T], None]) -> None:
        """Run ``script`` behind those before it, then ``done`` with its result."""
        self._scripts.append((script, done))
        if self._current is None:
            self._guard(self._work)

    def hang_up(self, done: Callable[[], None]) -> None:
        """Drop what runs, wait until the back end has let go, close, then ``done``.

        A back end ends its requests in flight before it closes its side.  One that does not is lost.
        """
        self._timer_off()
        self._drop()
        self._hung_up = done
        self._timer = self._loop.call_later(PATIENCE, self._time_is_up)
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(BackendError("is lost"))

    def wait(self, seconds: float = PATIENCE, watched: int = -1) -> None:
        """Serve the connection until nothing is to do, it is lost, or ``watched`` is readable.

        For when the loop does not run.  A back end that takes longer than ``seconds`` is lost.
        """
        deadline = time.monotonic() + seconds
        while self._open and (self._current or self._hung_up):
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            if watched >= 0:
                poll.register(watched, select.POLLIN)
            events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if watched in events:
                return
            if not events:
                self._time_is_up()
            elif events[self._socket.fileno()] & ~select.POLLOUT:
                self._guarded_receive()
            else:
                self._guarded_flush()

    def close(self) -> None:
        """End the connection; no callback comes any more.  Idempotent."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        self._timer_off()
        self._drop()
        self._socket.close()
        self._inbox.close()

    # --- the script that runs ------------------------------------------------------------------

    def _work(self) -> None:
        """Go on as long as no reply is waited for."""
        while self._open and not self._pending and not self._outbox:
            if self._current is None:
                if not self._scripts:
                    return
                self._current = self._scripts.popleft()
                self._timer = self._loop.call_later(PATIENCE, self._time_is_up)
                self._replies = None
            script, done = self._current
            replies, self._replies = self._replies, []
            try:
                requests = script.send(replies)  # type: ignore[arg-type]  # a generator starts with None
            except StopIteration as end:
                self._timer_off()
                self._current = None
                done(end.value)
                continue
            self._post(requests)
            self._flush()

    def _post(self, requests: Sequence[Request]) -> None:
        for request in requests:
            need_reply = self.acknowledged and not request.answers
            self._outbox.append((request.encode(need_reply=need_reply), request.fds))
            if need_reply or request.answers:
                self._pending.append(request)

    def _flush(self) -> None:
        """Send what the socket takes; the loop comes back for the rest."""
        while self._outbox:
            data, fds = self._outbox[0]
            rights = struct.pack(f"={len(fds)}i", *fds)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
            try:
                sent = self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._guarded_flush)
                return
            except OSError as error:
                raise BackendError(f"is lost: {error.strerror}") from error
            self._outbox.popleft()
            if sent < len(data):
                self._outbox.appendleft((data[sent:], ()))
        self._loop.remove_writer(self._socket.fileno())

    def _guarded_flush(self) -> None:
        self._guard(self._flush)
        self._guard(self._work)

    def _guarded_receive(self) -> None:
        self._guard(self._receive)

    def _receive(self) -> None:
        try:
            receive(self._socket, self._inbox)
        except BlockingIOError:
            return
        except EOFError:
            raise BackendError("has closed the connection") from None
        while (reply := self._inbox.next()) is not None:
            if not self._pending:
                message.close_all(reply.fds)
                if self._hung_up:
                    continue
                raise BackendError(f"sends message {reply.id} unasked")
            request = self._pending.popleft()
            message.check_reply(request, reply)
            if request.answers and self._replies is not None:
                self._replies.append(reply)
            else:
                message.acknowledged(request, reply)
        self._work()

    def _drop(self) -> None:
        """Forget every script and what it waits for."""
        self._loop.remove_writer(self._socket.fileno())
        for reply in self._replies or ():
            message.close_all(reply.fds)
        self._replies = []
        self._scripts.clear()
        self._outbox.clear()
        self._pending.clear()
        self._current = None

    def _timer_off(self) -> None:
        if self._timer:
            self._timer.cancel()

    # --- the end ---------------------------------------------------------------------------------

    def _guard(self, action: Callable[[], None]) -> None:
        if not self._open:
            return
        try:
            action()
        except BackendError as error:
            self._end(error)

    def _time_is_up(self) -> None:
        self._hung_up = None
        self._end(BackendError(f"does not answer for {PATIENCE:.0f} seconds"))

    def _end(self, error: BackendError) -> None:
        hung_up = self._hung_up
        self.close()
        if hung_up:
            hung_up()
        else:
            self._lost(error)
