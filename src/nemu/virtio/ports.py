"""virtio-console with VIRTIO_CONSOLE_F_MULTIPORT: named streams for agents (virtio 1.2, section 5.3).

None of its ports is a console.  That one is a device of its own, since drivers disagree on the order of
rows and columns in the control message that resizes a console, but not in the configuration space.

Threat note: a control message of the driver names a port, which is checked; what waits to be told to a
driver that gives no buffers is a set, so that repeating a question does not make it grow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from nemu import iovec
from nemu.backends.chardev import Chardev
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.console import CONFIG, QUEUE_SIZE
from nemu.virtio.device import Transport, VirtioDevice, again, drain, guarded
from nemu.virtio.port import Port, next_buffer
from nemu.virtio.queue import Chain, Queue

F_MULTIPORT = 1 << 1  # 5.3.3
# 5.3.6.2 control messages
_CONTROL = struct.Struct("<IHH")  # port, event, value
DEVICE_READY, DEVICE_ADD, PORT_READY, PORT_OPEN, PORT_NAME = 0, 1, 3, 6, 7


class NamedPort(NamedTuple):
    """A port as the guest finds it: Linux shows ``name`` in /sys/class/virtio-ports/*/name."""

    name: str
    backend: Chardev


class VirtioPorts(VirtioDevice):
    """Ports 0 and up, one for each of ``ports``.

    A port is open on this side while its backend is ``connected``; when it is not, a read in Linux
    gives the end of the file and a write waits.  A driver that does not take F_MULTIPORT finds no port.
    """

    device_id = 3
    features = F_MULTIPORT

    def __init__(self, name: str, ports: Sequence[NamedPort], loop: EventLoop) -> None:
        super().__init__(name, config=CONFIG.pack(0, 0, len(ports), 0))
        self.queue_sizes = (QUEUE_SIZE,) * (2 * len(ports) + 2)
        self._names = [port.name for port in ports]
        self._loop = loop
        self._ports = [
            Port(port.backend, loop, partial(self._changed, number)) for number, port in enumerate(ports)
        ]
        self._tell: Queue | None = None
        self._hear: Queue | None = None
        self._transport: Transport | None = None
        self._ready: set[int] = set()  # ports that the driver has set up
        self._untold: dict[bytes, None] = {}  # messages in the order of their sending, each once

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        if not features & F_MULTIPORT:
            return
        self._transport = transport
        # 5.3.2: the queues of port 0 come first, those for control messages second.
        self._tell, self._hear = queues[2:4]
        pairs = [queues[:2], *(queues[index : index + 2] for index in range(4, len(queues), 2))]
        for port, (receive, transmit) in zip(self._ports, pairs, strict=True):
            port.start(receive, transmit, transport)

    def notify(self, index: int) -> None:
        if index == 2:
            self._send()
        elif index == 3:
            self._listen()
        else:
            port = self._ports[max(0, index // 2 - 1)]
            if index % 2:
                port.transmit()
            else:
                port.receive()

    def deactivate(self, done: Callable[[], None]) -> None:
        for port in self._ports:
            port.stop()
        self._tell = self._hear = self._transport = None
        self._ready.clear()
        self._untold.clear()
        done()

    def close(self) -> None:
        for port in self._ports:
            port.close()

    def _listen(self) -> None:
        """Take the driver's messages, then answer."""
        queue = self._hear
        if queue and self._transport:
            if drain(queue, partial(self._take, queue)):
                again(self._loop, self._transport, self._listen)
            self._send()

    def _take(self, queue: Queue, chain: Chain) -> bool:
        message = iovec.gather(chain.readable, _CONTROL.size)
        if len(message) < _CONTROL.size:
            raise GuestError(f"a control message of {len(message)} bytes")
        number, event, value = _CONTROL.unpack(message)
        if event == DEVICE_READY and value:
            for port in range(len(self._ports)):
                self._put(port, DEVICE_ADD)
        elif event in (PORT_READY, PORT_OPEN):
            if number >= len(self._ports):
                raise GuestError(f"a control message for port {number} of {len(self._ports)}")
            self._driver_said(number, event, bool(value))
        queue.push(chain.head, 0)
        return True

    def _driver_said(self, number: int, event: int, value: bool) -> None:
        if event == PORT_OPEN and value:
            self._ports[number].listen()
        elif event == PORT_OPEN:
            self._ports[number].end()
        elif value:
            self._ready.add(number)
            self._put(number, PORT_NAME, 1, self._names[number].encode())
            self._put(number, PORT_OPEN, self._ports[number].backend.connected)

    def _changed(self, number: int) -> None:
        """Somebody came to the other end of port ``number``, or left it."""
        if number in self._ready and self._transport:
            self._put(number, PORT_OPEN, self._ports[number].backend.connected)
            guarded(self._transport, self._send)

    def _put(self, number: int, event: int, value: int = 1, text: bytes = b"") -> None:
        message = _CONTROL.pack(number, event, value) + text
        self._untold.pop(message, None)  # what is said again is said last
        self._untold[message] = None

    def _send(self) -> None:
        """Tell the driver what waits, as far as it has given buffers."""
        queue = self._tell
        if queue is None:
            return
        while self._untold and (chain := next_buffer(queue)):
            message = next(iter(self._untold))
            if iovec.size(chain.writable) < len(message):
                raise GuestError(f"a buffer without room for a control message of {len(message)} bytes")
            del self._untold[message]
            queue.push(chain.head, iovec.scatter(chain.writable, message))
        queue.flush()
