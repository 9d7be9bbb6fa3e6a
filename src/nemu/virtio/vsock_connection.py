"""One stream connection between the guest and a client on the host (virtio 1.2, section 5.10.6).

    REQUESTED ── RESPONSE ── CONNECTED ── the client hangs up ── CLOSING
        └── RST, time ────────── RST, SHUTDOWN of both ──────── RST, time ── ended

The guest may send as much as the buffer towards the client holds (``BUFFER``): each packet to it says
how much has left that buffer.  Towards the guest there is no buffer: bytes are read from the
client's socket straight into guest RAM, no more of them than the guest has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from nemu import iovec
from nemu.backends.stream import Stream
from nemu.backends.vsock_socket import BUFFER
from nemu.virtio.vsock_packet import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST_CID,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    TYPE_STREAM,
    Credit,
    Header,
)

MAX_DATA = 64 * 1024  # bytes in one packet to the guest, as in Linux's own
_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND


class State(Enum):
    REQUESTED = "the guest was asked and has not answered"
    CONNECTED = "data may flow"
    CLOSING = "the client is gone; the guest was told so"
    ENDED = "nobody knows it any more"


class Owner(Protocol):
    """The device.  Its table holds the connection until ``forget``."""

    def send(self, header: Header) -> None:
        """Queue a packet without data for the guest."""
        ...

    def wake(self, connection: Connection) -> None:
        """``deliver`` may give something now."""
        ...

    def await_answer(self, connection: Connection) -> None:
        """Call ``reset`` unless the guest answers in time."""
        ...

    def answered(self, connection: Connection) -> None:
        """It has."""
        ...

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        ...


class Connection:
    """``key`` is (the guest's port, the host's port).  Implements StreamUser."""

    def __init__(self, owner: Owner, cid: int, key: tuple[int, int], stream: Stream) -> None:
        self.key = key
        self.state = State.CONNECTED
        self._owner = owner
        self._cid = cid
        self._stream = stream
        self._credit = Credit()
        self._received = 0  # bytes of data from the guest
        self._told = 0  # what it was told last of those that have left the buffer
        self._asked = False  # for credit, since data was sent last
        self._guest_sends = self._guest_receives = self._client_sends = True
        stream.user = self

    def request(self) -> None:
        """The client asks the guest for this connection."""
        self.state = State.REQUESTED
        self._owner.await_answer(self)
        self._send(REQUEST)

    def accept(self, header: Header) -> None:
        """The guest asked for this connection by ``header``."""
        self._credit.hear(header)
        self._send(RESPONSE)
        self._owner.wake(self)

    def receive(self, header: Header, data: Sequence[memoryview]) -> None:
        """A packet of the guest, with ``header.length`` bytes of data."""
        self._credit.hear(header)
        if header.op == RST:
            self._end()
        elif self.state is State.REQUESTED:
            self._answered(header)
        elif header.op == RW and self._guest_sends:
            self._data(data)
        elif header.op == SHUTDOWN:
            self._shut_down(header.flags)
        elif header.op == CREDIT_REQUEST:
            self._send(CREDIT_UPDATE)
        elif header.op != CREDIT_UPDATE:
            self.reset()  # out of place
        if self._open:
            self._owner.wake(self)

    def deliver(self, views: Sequence[memoryview]) -> Header | None:
        """Read the client's next bytes into ``views``; the header of the packet that they are.

        None when there are none, or the guest has no room: ``Owner.wake`` says when to try again.
        """
        if not self._open:
            return None
        room = min(self._credit.room, MAX_DATA)
        if room == 0:
            self._stream.watch(False)
            if not self._asked:
                self._asked = True
                self._send(CREDIT_REQUEST)
            return None
        try:
            count = self._stream.read(iovec.take(views, room))
        except BlockingIOError:
            self._stream.watch(True)
            return None
        if count == 0:
            self._client_ended()
            return None
        self._asked = False
        self._credit.use(count)
        return self._header(RW, length=count)

    def pause(self) -> None:
        """There is no room for a packet: do not wake the owner for what the client sends."""
        self._stream.watch(False)

    def reset(self) -> None:
        """End it for both sides.  The client still gets what was sent to it."""
        self._send(RST)
        self._end()

    def abandon(self) -> None:
        """The guest is gone: end it for the client."""
        self.state = State.ENDED
        self._stream.linger()

    # --- StreamUser ---------------------------------------------------------------------------

    def readable(self) -> None:
        self._owner.wake(self)

    def drained(self) -> None:
        self._give_credit()

    def failed(self) -> None:
        self.reset()

    # --- what the guest sends -------------------------------------------------------------------

    def _answered(self, header: Header) -> None:
        if header.op != RESPONSE:
            self.reset()
            return
        self.state = State.CONNECTED
        self._owner.answered(self)
        self._stream.write([memoryview(b"OK %d\n" % self.key[1])])

    def _data(self, data: Sequence[memoryview]) -> None:
        if self.state is State.CLOSING:
            return  # sent before the guest knew; nobody is there to take it
        self._received += iovec.size(data)
        if self._stream.write(data):
            self._give_credit()
        else:
            self.reset()  # it had no credit for that

    def _shut_down(self, flags: int) -> None:
        if flags & SHUTDOWN_RECEIVE and self._guest_receives:
            self._guest_receives = False
            self._stream.refuse()
        if flags & SHUTDOWN_SEND and self._guest_sends:
            self._guest_sends = False
            self._stream.finish()
        if not self._guest_receives and not self._guest_sends:
            self.reset()  # 5.10.6.5: which acknowledges it

    # --- what the client does -------------------------------------------------------------------

    def _client_ended(self) -> None:
        self._client_sends = False
        self._stream.watch(False)  # a socket at its end is always readable
        if self._stream.hung_up:
            self.state = State.CLOSING
            self._owner.await_answer(self)
        self._send(SHUTDOWN, flags=_BOTH if self.state is State.CLOSING else SHUTDOWN_SEND)

    # --- common --------------------------------------------------------------------------------------

    @property
    def _open(self) -> bool:
        """Whether data may flow to the guest."""
        return self.state is State.CONNECTED and self._guest_receives and self._client_sends

    @property
    def _left(self) -> int:
        """Bytes that have left the buffer.  What is pending may begin with our own line for the client."""
        return self._received - min(self._stream.pending, self._received)

    def _give_credit(self) -> None:
        if self._left - self._told >= BUFFER // 2:
            self._send(CREDIT_UPDATE)

    def _header(self, op: int, *, length: int = 0, flags: int = 0) -> Header:
        self._told = self._left
        guest_port, host_port = self.key
        return Header(
            *(HOST_CID, self._cid, host_port, guest_port),
            *(length, TYPE_STREAM, op, flags, BUFFER, self._told & 0xFFFF_FFFF),
        )

    def _send(self, op: int, flags: int = 0) -> None:
        self._owner.send(self._header(op, flags=flags))

    def _end(self) -> None:
        self._owner.forget(self)
        self.abandon()
