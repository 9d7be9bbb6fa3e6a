"""virtio-rng: the entropy device (virtio 1.2, section 5.4).

Threat note: a request of any length gets at most MAX_REQUEST bytes, so the guest cannot make
the host generate or hold more than that for one buffer; between batches of buffers everything
else in the loop has its turn.  The bytes are the host kernel's ``getrandom``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from nemu import iovec
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.device import Transport, VirtioDevice, again, drain
from nemu.virtio.queue import Chain, Queue

MAX_REQUEST = 64 * 1024


@dataclass(slots=True)
class _Active:
    queue: Queue
    transport: Transport

    def fill(self, chain: Chain) -> bool:
        length = min(iovec.size(chain.writable), MAX_REQUEST)
        if length == 0:
            raise GuestError("a request for entropy without room for any")
        self.queue.push(chain.head, iovec.scatter(chain.writable, os.getrandom(length)))
        return True


class VirtioRng(VirtioDevice):
    """Fills the buffers of its one queue with random bytes."""

    device_id = 4
    queue_sizes = (64,)
    features = 0

    def __init__(self, name: str, loop: EventLoop) -> None:
        super().__init__(name, config=b"")
        self._loop = loop
        self._active: _Active | None = None

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        queue = queues[0]
        self._active = _Active(queue, transport) if queue else None

    def notify(self, index: int) -> None:
        active = self._active
        if active and drain(active.queue, active.fill):
            again(self._loop, active.transport, self.notify, index)

    def deactivate(self, done: Callable[[], None]) -> None:
        self._active = None
        done()
