"""virtio-vsock on Unix sockets, without the host kernel's (virtio 1.2, section 5.10).

Threat note: a packet is checked here: its length within its buffer, the guest's own address as its source,
stream type; what belongs to no connection is answered with RST.  Connections are bounded by the
backend, data on its way to a client by the credit given for it.  Packets without data for a guest
that gives no room for them wait in ``outbox``; when that is full the guest's own are not taken any more,
as 5.10.6.1 wants it.  A guest that answers nothing loses its connections after a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nemu import iovec
from nemu.backends.stream import Stream
from nemu.backends.vsock_socket import VsockSocket
from nemu.errors import GuestError
from nemu.interfaces import EventLoop, Timer
from nemu.virtio.device import BATCH, Transport, VirtioDevice, again, drain, guarded
from nemu.virtio.queue import Chain, Queue
from nemu.virtio.vsock_connection import Connection
from nemu.virtio.vsock_packet import HEADER_SIZE, HOST_CID, REQUEST, RST, TYPE_STREAM, Header

RECEIVE, TRANSMIT, EVENT = 0, 1, 2
F_STREAM = 1 << 0  # 5.10.3
OUTBOX = 256  # packets
ANSWER_SECONDS = 10.0
FIRST_PORT, LAST_PORT = 1 << 30, (1 << 31) - 1  # of clients on the host


@dataclass(slots=True)
class _Active:
    """``ready`` are connections that may have data for the guest, in the order of their turns."""

    receive: Queue | None
    transmit: Queue | None
    transport: Transport
    outbox: deque[Header] = field(default_factory=deque)
    ready: dict[Connection, None] = field(default_factory=dict)
    spare: Chain | None = None  # room for a packet that was popped and not used
    busy: bool = False  # ``_fill`` is under way, or comes after what is
    scheduled: bool = False  # ``_fill`` comes in a later turn of the loop
    full: bool = False  # the outbox is, so nothing is taken from ``transmit``

    def room(self) -> Chain | None:
        """Where the next packet goes; without any the driver is asked to notify."""
        chain, self.spare = self.spare, None
        assert self.receive
        if chain is None:
            self.receive.disable_notifications()
            chain = self.receive.pop()
            if chain is None and self.receive.enable_notifications():
                chain = self.receive.pop()
        if chain and iovec.size(chain.writable) <= HEADER_SIZE:
            raise GuestError("a receive buffer without room for a packet")
        return chain


class VirtioVsock(VirtioDevice):
    """The guest with address ``cid``; implements vsock_socket.Frontend and vsock_connection.Owner."""

    device_id = 19
    queue_sizes = (128, 128, 8)
    features = F_STREAM

    def __init__(self, name: str, cid: int, backend: VsockSocket, loop: EventLoop) -> None:
        super().__init__(name, config=cid.to_bytes(8, "little"))  # 5.10.4
        self._cid = cid
        self._backend = backend
        self._loop = loop
        self._active: _Active | None = None
        self._connections: dict[tuple[int, int], Connection] = {}
        self._answers: dict[Connection, Timer] = {}  # that are waited for
        self._port = FIRST_PORT

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._active = _Active(queues[RECEIVE], queues[TRANSMIT], transport)
        self._backend.attach(self)

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self._fill()
        elif index == TRANSMIT:
            self._transmit()

    def deactivate(self, done: Callable[[], None]) -> None:
        if self._active:
            self._active = None
            self._backend.detach()
        for connection in list(self._connections.values()):
            self.forget(connection)
            connection.abandon()
        done()

    # --- vsock_socket.Frontend --------------------------------------------------------------

    def connect(self, port: int, stream: Stream) -> None:
        if self._active is None or len(self._active.outbox) >= OUTBOX:
            stream.close()  # the guest does not even take what it is told
            return
        while (port, self._port) in self._connections:
            self._next_port()
        connection = self._add((port, self._port), stream)
        self._next_port()
        connection.request()

    def _next_port(self) -> None:
        self._port = self._port + 1 if self._port < LAST_PORT else FIRST_PORT

    # --- vsock_connection.Owner ---------------------------------------------------------------

    def send(self, header: Header) -> None:
        if self._active:
            self._active.outbox.append(header)
            self._fill_soon(self._active)

    def wake(self, connection: Connection) -> None:
        if self._active:
            self._active.ready[connection] = None
            self._fill_soon(self._active)

    def await_answer(self, connection: Connection) -> None:
        self._answers[connection] = self._loop.call_later(ANSWER_SECONDS, connection.reset)

    def answered(self, connection: Connection) -> None:
        if timer := self._answers.pop(connection, None):
            timer.cancel()

    def forget(self, connection: Connection) -> None:
        self.answered(connection)
        self._connections.pop(connection.key, None)
        if self._active:
            self._active.ready.pop(connection, None)

    # --- from the guest --------------------------------------------------------------------------

    def _transmit(self) -> None:
        """Take the guest's packets while there is room for what they may be answered with."""
        active = self._active
        if active is None or active.transmit is None or active.full:
            return
        active.busy = True
        more = drain(active.transmit, lambda chain: self._take(active, chain))
        active.busy = False
        if more:
            again(self._loop, active.transport, self._transmit)
        self._fill()

    def _take(self, active: _Active, chain: Chain) -> bool:
        header = iovec.gather(chain.readable, HEADER_SIZE)
        if len(header) < HEADER_SIZE:
            raise GuestError(f"a packet of {len(header)} bytes has no header")
        packet = Header.unpack(header)
        data = iovec.take(iovec.skip(chain.readable, HEADER_SIZE), packet.length)
        if iovec.size(data) < packet.length:
            raise GuestError(f"a packet of {packet.length} bytes is longer than its buffer")
        if packet.src_cid == self._cid:  # nobody could answer another address
            self._receive(packet, data)
        assert active.transmit
        active.transmit.push(chain.head, 0)
        active.full = len(active.outbox) >= OUTBOX
        return not active.full

    def _receive(self, packet: Header, data: iovec.Iovec) -> None:
        """One packet from the guest."""
        known = self._connections.get((packet.src_port, packet.dst_port))
        if packet.dst_cid != HOST_CID or packet.type != TYPE_STREAM:
            known = None
        elif known is None and packet.op == REQUEST:
            stream = self._backend.open(packet.dst_port)
            if stream:
                self._add((packet.src_port, packet.dst_port), stream).accept(packet)
                return
        if known:
            known.receive(packet, data)
        elif packet.op != RST:
            self.send(packet.refusal())

    def _add(self, key: tuple[int, int], stream: Stream) -> Connection:
        connection = self._connections[key] = Connection(self, self._cid, key, stream)
        return connection

    # --- to the guest ------------------------------------------------------------------------------

    def _fill_soon(self, active: _Active) -> None:
        if not active.busy and not active.scheduled:
            guarded(active.transport, self._fill)

    def _fill(self) -> None:
        """Give the guest what there is for it, as long as it has room."""
        active = self._active
        if active is None or active.receive is None:
            return
        active.busy = True
        more = self._fill_batch(active, active.receive)
        active.busy = False
        if more and not active.scheduled:
            active.scheduled = True
            again(self._loop, active.transport, self._fill_again)
        if active.full and len(active.outbox) < OUTBOX:
            active.full = False
            again(self._loop, active.transport, self._transmit)

    def _fill_again(self) -> None:
        if self._active:
            self._active.scheduled = False
            self._fill()

    @staticmethod
    def _fill_batch(active: _Active, queue: Queue) -> bool:
        """At most BATCH packets; True when there may be more.  Those without data go first."""
        for _ in range(BATCH):
            if not active.outbox and not active.ready:
                break
            chain = active.room()
            if chain is None:
                for connection in active.ready:
                    connection.pause()
                break
            if active.outbox:
                header: Header | None = active.outbox.popleft()
            else:
                connection = next(iter(active.ready))
                del active.ready[connection]
                header = connection.deliver(iovec.skip(chain.writable, HEADER_SIZE))
                if header:  # another turn, behind the others
                    active.ready[connection] = None
            if header is None:
                active.spare = chain
            else:
                iovec.scatter(chain.writable, header.pack())
                queue.push(chain.head, HEADER_SIZE + header.length)
        else:
            queue.flush()
            return True
        queue.flush()
        return False
