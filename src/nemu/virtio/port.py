"""One port of a console device: bytes between a pair of virtqueues and a character backend.

Threat note: output of any length is copied in pieces into the backend's bounded buffer; when
that is full the chain stays with the device and no other is taken.  Input is read only into
room that the guest has given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nemu import iovec
from nemu.backends.chardev import Chardev
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.device import BATCH, Transport, again, drain, guarded
from nemu.virtio.queue import Chain, Queue

MAX_READ = 4096


@dataclass(slots=True)
class _Active:
    """``input`` is a chain that waits for input; ``output`` one that is partly written, and its rest.

    Input waits while the driver is not ``listening``.  After ``ending`` it writes no more.
    """

    receive: Queue | None
    transmit: Queue | None
    transport: Transport
    listening: bool = False
    ending: bool = False
    input: Chain | None = None
    output: tuple[Chain, iovec.Iovec] | None = None


class Port:
    """Implements nemu.backends.chardev.Frontend.  ``changed`` is called when the backend says so."""

    def __init__(self, backend: Chardev, loop: EventLoop, changed: Callable[[], None]) -> None:
        self.backend = backend
        self.changed = changed
        self._loop = loop
        self._active: _Active | None = None
        backend.attach(self)

    def start(self, receive: Queue | None, transmit: Queue | None, transport: Transport) -> None:
        """Serve these queues; input waits until ``listen``."""
        self._active = _Active(receive, transmit, transport)

    def stop(self) -> None:
        """Let go of the queues."""
        self._active = None

    def close(self) -> None:
        if self.backend.frontend is self:
            self.backend.detach()

    def listen(self) -> None:
        """The driver takes input from now on.  Raises GuestError."""
        if self._active:
            self._active.listening = True
            self._active.ending = False
            self.receive()

    def end(self) -> None:
        """The driver takes no more input; the backend learns of the end of its output.  Raises GuestError."""
        if self._active:
            self._active.listening = False
            self._active.ending = True
            self.transmit()

    def readable(self) -> None:
        if self._active:
            guarded(self._active.transport, self.receive)

    def writable(self) -> None:
        if self._active:
            guarded(self._active.transport, self.transmit)

    def receive(self) -> None:
        """Move input into the guest's buffers until one of both runs out.  Raises GuestError."""
        active = self._active
        if active is None or active.receive is None or not active.listening:
            return
        queue = active.receive
        for _ in range(BATCH):
            chain = active.input or _next_input(queue)
            if chain is None:
                break
            data = self.backend.read(min(iovec.size(chain.writable), MAX_READ))
            active.input = None if data else chain
            if not data:
                break
            queue.push(chain.head, iovec.scatter(chain.writable, data))
        else:
            again(self._loop, active.transport, self.receive)
        queue.flush()

    def transmit(self) -> None:
        """Move output to the backend until one of both runs out.  Raises GuestError."""
        active = self._active
        if active is None or active.transmit is None:
            return
        if active.output:
            chain, rest = active.output
            active.output = None
            if not self._send(active, active.transmit, chain, rest):
                return
        queue = active.transmit
        if drain(queue, lambda chain: self._send(active, queue, chain, chain.readable)):
            again(self._loop, active.transport, self.transmit)
        elif active.ending and not active.output:
            active.ending = False
            self.backend.ended()

    def _send(self, active: _Active, queue: Queue, chain: Chain, views: iovec.Iovec) -> bool:
        """Write ``views``; False when the backend is full, with the rest kept for later."""
        for number, view in enumerate(views):
            taken = self.backend.write(view)
            if taken < len(view):
                active.output = (chain, [view[taken:], *views[number + 1 :]])
                return False
        queue.push(chain.head, 0)
        return True


def next_buffer(queue: Queue) -> Chain | None:
    """A buffer for what the device has to say.  Without one the driver is asked to notify of the next."""
    queue.disable_notifications()
    chain = queue.pop()
    if chain is None and queue.enable_notifications():
        chain = queue.pop()
    return chain


def _next_input(queue: Queue) -> Chain | None:
    chain = next_buffer(queue)
    if chain and not chain.writable:
        raise GuestError("a buffer for console input without room")
    return chain
