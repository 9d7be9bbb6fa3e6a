"""The way of a message, as KVM would deliver it."""

from __future__ import annotations

import os


class FakeRouter:
    """Implements interfaces.MsiRouter.  ``sent`` are the (address, data) that reached the CPUs."""

    def __init__(self) -> None:
        self.connected: dict[int, tuple[int, int]] = {}
        self.forgotten: list[int] = []
        self._sent: list[tuple[int, int]] = []

    def connect(self, eventfd: int, address: int, data: int) -> None:
        self.connected[eventfd] = (address, data)
        self._collect()

    def disconnect(self, eventfd: int) -> None:
        self._collect()  # what was signalled while connected has left
        self.connected.pop(eventfd, None)

    def forget(self, eventfd: int) -> None:
        self.disconnect(eventfd)
        self.forgotten.append(eventfd)

    @property
    def sent(self) -> list[tuple[int, int]]:
        self._collect()
        return self._sent

    def _collect(self) -> None:
        for eventfd, message in self.connected.items():
            try:
                os.eventfd_read(eventfd)
            except BlockingIOError:
                continue
            self._sent.append(message)
