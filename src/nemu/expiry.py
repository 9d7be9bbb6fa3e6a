"""Time limits for what comes and goes by the thousand: one timer for all of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from nemu.interfaces import EventLoop, Timer


class Expiry:
    """Calls back for each key that is not removed within ``seconds`` to twice as many.

    Its size is that of what waits; a timer for each would stay in the loop until its time, even if cancelled.
    """

    def __init__(self, loop: EventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._young: dict[Hashable, Callable[[], None]] = {}
        self._old: dict[Hashable, Callable[[], None]] = {}
        self._timer: Timer | None = None

    def add(self, key: Hashable, callback: Callable[[], None]) -> None:
        """Call ``callback`` unless ``key`` is removed in time."""
        self.remove(key)
        self._young[key] = callback
        self._arm()

    def remove(self, key: Hashable) -> None:
        """No effect on a key that is not waited for."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Wait for nothing any more."""
        self._young.clear()
        self._old.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None and (self._young or self._old):
            self._timer = self._loop.call_later(self._seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        due, self._old, self._young = self._old, self._young, {}
        self._arm()
        for callback in due.values():
            callback()
