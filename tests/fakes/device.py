"""A virtio device that does nothing by itself and remembers what its transport asked."""

from __future__ import annotations

from collections.abc import Callable

from nemu.errors import GuestError
from nemu.virtio.device import Transport, VirtioDevice
from nemu.virtio.queue import Queue


class FakeDevice(VirtioDevice):
    """Two queues.  ``busy``: as if I/O were in flight, until ``finish_io``.  ``fault``: raised by
    ``notify``."""

    device_id = 42
    queue_sizes: tuple[int, ...] = (64, 8)
    features = 1 << 3 | 1 << 5

    def __init__(self, config: bytes = b"\x11\x22\x33\x44\x55\x66\x77\x88") -> None:
        super().__init__("virtio-fake0", config)
        self.busy = False
        self.fault: GuestError | None = None
        self.activations: list[tuple[int, tuple[Queue | None, ...]]] = []
        self.transport: Transport | None = None
        self.notified: list[int] = []
        self.deactivations = 0
        self.closed = 0
        self._done: list[Callable[[], None]] = []

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self.activations.append((features, queues))
        self.transport = transport

    def notify(self, index: int) -> None:
        self.notified.append(index)
        if self.fault:
            raise self.fault

    def deactivate(self, done: Callable[[], None]) -> None:
        self.deactivations += 1
        if self.busy:
            self._done.append(done)
        else:
            done()

    def finish_io(self) -> None:
        self.busy = False
        done, self._done = self._done, []
        for call in done:
            call()

    def write_config(self, offset: int, width: int, value: int) -> None:
        data = value.to_bytes(width, "little")[: len(self.config) - offset]
        self.config[offset : offset + len(data)] = data

    def close(self) -> None:
        self.closed += 1
