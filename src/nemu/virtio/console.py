"""virtio-console: one port, the machine's default console (virtio 1.2, section 5.3).

Threat note: output of any length is copied in pieces into the backend's bounded buffer; when
that is full the chain stays with the device and no other is taken.  Input is read only into
room that the guest has given.  The guest sees nothing of the host but the terminal's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nemu import iovec
from nemu.backends.chardev import Chardev
from nemu.errors import GuestError
from nemu.interfaces import EventLoop, Timer
from nemu.virtio.device import BATCH, Transport, VirtioDevice, again, drain, guarded
from nemu.virtio.queue import Chain, Queue

RECEIVE, TRANSMIT = 0, 1
F_SIZE = 1 << 0  # 5.3.3
MAX_READ = 4096
# Seconds after DRIVER_OK in which input waits: Linux throws away what comes before it has set its port up.
SETTLE = 0.5
_CONFIG = struct.Struct("<HHII")  # 5.3.4: cols, rows, max_nr_ports, emerg_wr


@dataclass(slots=True)
class _Active:
    """``input`` is a chain that waits for input; ``output`` one that is partly written, and its rest.

    ``listening`` begins when the driver has had time to set its port up.
    """

    receive: Queue | None
    transmit: Queue | None
    transport: Transport
    listening: bool = False
    input: Chain | None = None
    output: tuple[Chain, iovec.Iovec] | None = None


class VirtioConsole(VirtioDevice):
    """A console port on a character backend.  Implements nemu.backends.chardev.Frontend.

    ``opened`` tells whether a driver has ever started it.
    """

    device_id = 3
    queue_sizes = (64, 64)

    def __init__(self, name: str, backend: Chardev, loop: EventLoop) -> None:
        size = backend.size
        super().__init__(name, config=_CONFIG.pack(*(size or (0, 0)), 1, 0))
        self.features = F_SIZE if size else 0
        self._backend = backend
        self._loop = loop
        self._active: _Active | None = None
        self._settling: Timer | None = None
        self.opened = False
        backend.attach(self)

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._active = _Active(queues[RECEIVE], queues[TRANSMIT], transport)
        self.opened = True
        if features & F_SIZE:
            transport.config_changed()  # Linux reads the size only when it is told of a change
        self._settling = self._loop.call_later(SETTLE, partial(self._listen, self._active))

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self._receive()
        elif index == TRANSMIT:
            self._transmit()

    def deactivate(self, done: Callable[[], None]) -> None:
        self._active = None
        if self._settling is not None:  # it holds the queues, and they guest RAM
            self._settling.cancel()
            self._settling = None
        done()

    def close(self) -> None:
        if self._backend.frontend is self:
            self._backend.detach()

    def readable(self) -> None:
        if self._active:
            guarded(self._active.transport, self._receive)

    def writable(self) -> None:
        if self._active:
            guarded(self._active.transport, self._transmit)

    def resized(self) -> None:
        size = self._backend.size
        if size and self.features & F_SIZE:
            struct.pack_into("<HH", self.config, 0, *size)
            if self._active:
                self._active.transport.config_changed()

    def _listen(self, active: _Active) -> None:
        self._settling = None
        active.listening = True
        guarded(active.transport, self._receive)

    def _receive(self) -> None:
        """Move input into the guest's buffers until one of both runs out."""
        active = self._active
        if active is None or active.receive is None or not active.listening:
            return
        queue = active.receive
        for _ in range(BATCH):
            chain = active.input or self._next_input(queue)
            if chain is None:
                break
            data = self._backend.read(min(iovec.size(chain.writable), MAX_READ))
            active.input = None if data else chain
            if not data:
                break
            queue.push(chain.head, iovec.scatter(chain.writable, data))
        else:
            again(self._loop, active.transport, self._receive)
        queue.flush()

    @staticmethod
    def _next_input(queue: Queue) -> Chain | None:
        """A buffer for input.  Without one the driver is asked to notify, and no input is read."""
        queue.disable_notifications()
        chain = queue.pop()
        if chain is None and queue.enable_notifications():
            chain = queue.pop()
        if chain and not chain.writable:
            raise GuestError("a buffer for console input without room")
        return chain

    def _transmit(self) -> None:
        active = self._active
        if active is None or active.transmit is None:
            return
        if active.output:
            chain, rest = active.output
            active.output = None
            if not self._send(chain, rest):
                return
        if drain(active.transmit, lambda chain: self._send(chain, chain.readable)):
            again(self._loop, active.transport, self._transmit)

    def _send(self, chain: Chain, views: iovec.Iovec) -> bool:
        """Write ``views``; False when the backend is full, with the rest kept for later."""
        assert self._active
        assert self._active.transmit
        for number, view in enumerate(views):
            taken = self._backend.write(view)
            if taken < len(view):
                self._active.output = (chain, [view[taken:], *views[number + 1 :]])
                return False
        self._active.transmit.push(chain.head, 0)
        return True
