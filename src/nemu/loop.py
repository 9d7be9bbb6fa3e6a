"""The event loop: descriptors, timers, signals and calls from other threads, on one thread.

It sleeps in epoll without a time-out unless a timer is set, so an idle machine never wakes it.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from threading import RLock

# Descriptors handled between two looks at calls and timers.
_EVENTS = 64
# Timers that are kept before those that were cancelled are thrown out, long before they are due: a guest may
# have a timer set and cancelled as often as it likes.
_TIMERS = 64


class Timer:
    """A pending call; ``cancel`` it before it is due."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """interfaces.EventLoop.  Every callback runs in the thread that called ``run``, holding ``lock``."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._once: set[Callable[[], None]] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._most_timers = _TIMERS
        self._sequence = count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._signal_pipe: tuple[int, int] | None = None
        self._running = True

    # --- what others ask for --------------------------------------------------------

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call while ``fd`` is readable or hung up.  Replaces an earlier callback."""
        self._watch(fd, self._readers, callback)

    def remove_reader(self, fd: int) -> None:
        self._unwatch(fd, self._readers)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Call while ``fd`` is writable."""
        self._watch(fd, self._writers, callback)

    def remove_writer(self, fd: int) -> None:
        self._unwatch(fd, self._writers)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """From any thread."""
        self._calls.append(callback)
        os.eventfd_write(self._wake, 1)

    def call_once(self, callback: Callable[[], None]) -> None:
        """With the machine lock held: as ``call_soon``, unless an equal callback waits already."""
        if callback not in self._once:
            self._once.add(callback)
            self.call_soon(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """From any thread that holds the machine lock, or before ``run``."""
        timer = Timer(callback)
        if len(self._timers) >= self._most_timers:
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._most_timers = _TIMERS + 2 * len(self._timers)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._sequence), timer))
        os.eventfd_write(self._wake, 1)  # the loop may sleep for longer than that
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call for each arrival of signal ``number`` (main thread only)."""
        if self._signal_pipe is None:
            self._signal_pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            # The C handler writes the number from whichever thread the kernel chose.
            signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
            self.add_reader(self._signal_pipe[0], self._take_signals)
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)

    def stop(self) -> None:
        """Let ``run`` return, or the next one if none is running.  From any thread."""
        self._running = False
        os.eventfd_write(self._wake, 1)

    # --- the loop --------------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``; an exception of a callback comes out here."""
        with self._lock:
            time_out = self._time_out()
        while self._running:
            events = self._epoll.poll(time_out, _EVENTS)
            with self._lock:
                for fd, event in events:
                    self._dispatch(fd, event)
                self._run_calls()
                self._run_timers()
                time_out = self._time_out()
        self._running = True

    def close(self) -> None:
        """Forget everything; signals fall back to their defaults."""
        if self._signal_pipe is not None:
            signal.set_wakeup_fd(-1)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)
            for fd in self._signal_pipe:
                os.close(fd)
        self._epoll.close()
        os.close(self._wake)

    def _watch(self, fd: int, kind: dict[int, Callable[[], None]], callback: Callable[[], None]) -> None:
        known = fd in self._readers or fd in self._writers
        kind[fd] = callback
        if known:
            self._epoll.modify(fd, self._mask(fd))
        else:
            self._epoll.register(fd, self._mask(fd))

    def _unwatch(self, fd: int, kind: dict[int, Callable[[], None]]) -> None:
        if kind.pop(fd, None) is None:
            return
        if self._mask(fd):
            self._epoll.modify(fd, self._mask(fd))
        else:
            self._epoll.unregister(fd)

    def _mask(self, fd: int) -> int:
        return (select.EPOLLIN if fd in self._readers else 0) | (
            select.EPOLLOUT if fd in self._writers else 0
        )

    def _time_out(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._calls:
            return 0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _dispatch(self, fd: int, event: int) -> None:
        if fd == self._wake:
            os.eventfd_read(self._wake)
            return
        if event & ~select.EPOLLOUT and fd in self._readers:
            self._readers[fd]()
        # Looked up again: the reader may have removed the writer.
        if event & ~select.EPOLLIN and fd in self._writers:
            self._writers[fd]()

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):  # what these add runs in the next round
            callback = self._calls.popleft()
            self._once.discard(callback)
            callback()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()

    def _take_signals(self) -> None:
        assert self._signal_pipe is not None
        for number in os.read(self._signal_pipe[0], 256):
            callback = self._signals.get(number)
            if callback is not None:
                callback()
