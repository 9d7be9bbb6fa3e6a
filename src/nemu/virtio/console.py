"""virtio-console: one port, the machine's default console (virtio 1.2, section 5.3).

The guest sees nothing of the host but the terminal's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from nemu.backends.chardev import Chardev
from nemu.interfaces import EventLoop, Timer
from nemu.virtio.device import Transport, VirtioDevice, guarded
from nemu.virtio.port import Port
from nemu.virtio.queue import Queue

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 64
F_SIZE = 1 << 0  # 5.3.3
# Seconds after DRIVER_OK in which input waits: Linux throws away what comes before it has set its port up.
SETTLE = 0.5
CONFIG = struct.Struct("<HHII")  # 5.3.4: cols, rows, max_nr_ports, emerg_wr


class VirtioConsole(VirtioDevice):
    """A console port on a character backend.  ``opened`` tells whether a driver has ever started it."""

    device_id = 3
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(self, name: str, backend: Chardev, loop: EventLoop) -> None:
        size = backend.size
        super().__init__(name, config=CONFIG.pack(*(size or (0, 0)), 1, 0))
        self.features = F_SIZE if size else 0
        self._loop = loop
        self._transport: Transport | None = None
        self._settling: Timer | None = None
        self.opened = False
        self._port = Port(backend, loop, self._resized)

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._transport = transport
        self._port.start(queues[RECEIVE], queues[TRANSMIT], transport)
        self.opened = True
        if features & F_SIZE:
            transport.config_changed()  # Linux reads the size only when it is told of a change
        self._settling = self._loop.call_later(SETTLE, partial(guarded, transport, self._port.listen))

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self._port.receive()
        elif index == TRANSMIT:
            self._port.transmit()

    def deactivate(self, done: Callable[[], None]) -> None:
        self._port.stop()
        self._transport = None
        if self._settling is not None:  # else it would end the wait of the next activation
            self._settling.cancel()
            self._settling = None
        done()

    def close(self) -> None:
        self._port.close()

    def _resized(self) -> None:
        size = self._port.backend.size
        if size and self.features & F_SIZE:
            struct.pack_into("<HH", self.config, 0, *size)
            if self._transport:
                self._transport.config_changed()
