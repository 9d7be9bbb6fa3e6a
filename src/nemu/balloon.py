"""The balloon as the host sees it: how much memory the guest shall have, and what it tells of itself.

It outlives machines: after a reboot the new guest is asked for the same.  All calls are made with the
machine lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

PAGE_SIZE = 4096  # virtio 1.2, 5.5.6: the balloon's unit, whatever the guest's page size is
_MAX_PAGES = 0xFFFF_FFFF  # 5.5.4: num_pages is a u32


class Driver(Protocol):
    """The device of the running machine."""

    def target_changed(self) -> None: ...

    def request_statistics(self) -> None: ...


class Balloon:
    """Of ``memory`` bytes the guest is asked to keep ``target`` and has ``actual``, the rest is given back.

    ``statistics`` are the guest's latest own figures by name (virtio 1.2, 5.5.6.3), in bytes or events,
    empty until it told any.  They are a guest's words: good for decisions about this guest, and no others.
    """

    def __init__(self, memory: int, target: int) -> None:
        self.memory = memory
        self.target = self.actual = memory
        self.statistics: Mapping[str, int] = {}
        self._driver: Driver | None = None
        self._watchers: list[Callable[[], None]] = []
        self.set_target(target)

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB the guest is asked to put into the balloon."""
        return min((self.memory - self.target) // PAGE_SIZE, _MAX_PAGES)

    def set_target(self, size: int) -> None:
        """Ask the guest to keep ``size`` bytes, at most ``memory``.  It does so in its own time, or never."""
        self.target = min(max(size, 0), self.memory)
        if self._driver:
            self._driver.target_changed()

    def request_statistics(self) -> None:
        """Ask the guest for new ``statistics``; it may never answer."""
        if self._driver:
            self._driver.request_statistics()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call whenever the guest changed ``actual`` or ``statistics``: as often as it likes."""
        self._watchers.append(callback)

    # --- for the device ---------------------------------------------------------------------

    def attach(self, driver: Driver) -> None:
        """A new machine's device takes over; nothing is in its balloon."""
        self._driver = driver
        self.statistics = {}
        self.inflated(0)

    def inflated(self, pages: int) -> None:
        """The guest says that so many pages are in its balloon."""
        self.actual = max(self.memory - pages * PAGE_SIZE, 0)
        self._tell()

    def learned(self, statistics: Mapping[str, int]) -> None:
        """The guest told ``statistics``."""
        self.statistics = statistics
        self._tell()

    def _tell(self) -> None:
        for callback in self._watchers:
            callback()
