"""An event loop that a test turns by hand, in the test's own thread."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

Callback = Callable[[], None]


class FakeTimer:
    """A call that a test makes by hand."""

    def __init__(self, seconds: float, callback: Callback) -> None:
        self.seconds = seconds
        self._callback: Callback | None = callback

    def cancel(self) -> None:
        self._callback = None

    def expire(self) -> None:
        if self._callback:
            self._callback()


class FakeLoop:
    """Implements interfaces.EventLoop.  ``lock`` is the machine lock, held while callbacks run."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.readers: dict[int, Callback] = {}
        self.writers: dict[int, Callback] = {}
        self.soon: list[Callback] = []
        self.timers: list[FakeTimer] = []

    def add_reader(self, fd: int, callback: Callback) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callback) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        self.writers.pop(fd, None)

    def call_soon(self, callback: Callback) -> None:
        self.soon.append(callback)

    def call_once(self, callback: Callback) -> None:
        if callback not in self.soon:
            self.soon.append(callback)

    def call_later(self, seconds: float, callback: Callback) -> FakeTimer:
        self.timers.append(FakeTimer(seconds, callback))
        return self.timers[-1]

    def turn(self, wait: float = 0.0) -> bool:
        """Run what is ready now, once; False when nothing was.  Waits at most ``wait`` seconds for it."""
        with self.lock:
            soon, self.soon = self.soon, []
        poll = select.poll()
        for fd in self.readers.keys() | self.writers.keys():
            readable = select.POLLIN if fd in self.readers else 0
            poll.register(fd, readable | (select.POLLOUT if fd in self.writers else 0))
        events = poll.poll(0 if soon else wait * 1000)
        with self.lock:
            for callback in soon:
                callback()
            for fd, mask in events:
                if mask & ~select.POLLOUT and fd in self.readers:
                    self.readers[fd]()
                if mask & ~select.POLLIN and fd in self.writers:
                    self.writers[fd]()
        return bool(soon or events)

    def settle(self, limit: int = 10_000) -> None:
        """Turn until nothing is ready; fails when that takes more than ``limit`` turns."""
        for _ in range(limit):
            if not self.turn():
                return
        raise AssertionError(f"the loop did not come to rest in {limit} turns")

    def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Turn until ``condition`` holds; for what other threads or processes bring about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition never held"
            self.turn(0.01)
