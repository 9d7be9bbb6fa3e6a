"""The event loop on real descriptors, signals and threads."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nemu.loop import Loop

Turn = Callable[[], None]


class Watched(Loop):
    """A loop that knows how often it woke."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        super().__init__(self.lock)
        self.wakes = 0
        poll = self._epoll.poll
        real = self._epoll

        class Epoll:
            register, modify, unregister, close = real.register, real.modify, real.unregister, real.close

            @staticmethod
            def poll(timeout: float | None, events: int) -> list[tuple[int, int]]:
                found = poll(timeout, events)
                self.wakes += 1
                return found

        self._epoll = Epoll()  # type: ignore[assignment]

    def run_for(self, seconds: float) -> None:
        self.call_later(seconds, self.stop)
        self.run()


@pytest.fixture
def loop() -> Iterator[Watched]:
    one = Watched()
    yield one
    one.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.setblocking(False)
    with one, other:
        yield one, other


def test_a_reader_is_called_while_there_is_something(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    got: list[bytes] = []

    def read() -> None:
        got.append(one.recv(1))
        if len(got) == 3:
            loop.stop()

    loop.add_reader(one.fileno(), read)
    other.send(b"abc")
    loop.run()
    assert got == [b"a", b"b", b"c"]


def test_a_hang_up_calls_the_reader(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    loop.add_reader(one.fileno(), loop.stop)
    other.close()
    loop.run()


def test_reader_and_writer_of_one_descriptor_come_and_go_apart(
    loop: Watched, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    calls: list[str] = []
    fd = one.fileno()

    def write() -> None:
        calls.append("write")
        loop.remove_writer(fd)
        other.send(b"x")

    def read() -> None:
        calls.append("read")
        loop.remove_reader(fd)
        loop.stop()

    loop.add_reader(fd, read)
    loop.add_writer(fd, write)
    loop.run()
    assert calls == ["write", "read"]
    loop.run_for(0.01)
    assert calls == ["write", "read"]


def test_a_callback_may_remove_the_next_one(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    fds = [one.fileno(), other.fileno()]
    calls: list[int] = []

    def call(index: int) -> Turn:
        def callback() -> None:
            calls.append(index)
            loop.remove_writer(fds[0])
            loop.remove_writer(fds[1])
            loop.stop()

        return callback

    for index, fd in enumerate(fds):
        loop.add_writer(fd, call(index))
    loop.run()
    assert len(calls) == 1


def test_a_reader_may_remove_the_writer_of_its_own_descriptor(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    calls: list[str] = []

    def read() -> None:
        calls.append("read")
        loop.remove_writer(one.fileno())
        loop.stop()

    loop.add_reader(one.fileno(), read)
    loop.add_writer(one.fileno(), lambda: calls.append("write"))
    other.send(b"x")
    loop.run()
    assert calls == ["read"]


def test_removing_what_is_not_watched_does_nothing(loop: Loop) -> None:
    loop.remove_reader(0)
    loop.remove_writer(12345)


def test_timers_that_are_cancelled_do_not_pile_up(loop: Loop) -> None:
    kept = [loop.call_later(3600, lambda: None) for _ in range(100)]
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) < 1000
    assert {timer for _, _, timer in loop._timers} >= set(kept)


def test_timers_run_in_order_and_not_when_cancelled(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0.02, lambda: calls.append("b"))
    loop.call_later(0.01, lambda: calls.append("a"))
    loop.call_later(0.015, lambda: calls.append("never")).cancel()
    start = time.monotonic()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert calls == ["a", "b"]
    assert 0.03 <= time.monotonic() - start < 5


def test_calls_come_from_any_thread_in_order_and_hold_the_lock(loop: Watched) -> None:
    calls: list[tuple[int, bool]] = []

    def free_elsewhere() -> bool:
        """Whether another thread could take the lock now."""
        got: list[bool] = []
        thread = threading.Thread(target=lambda: got.append(loop.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return got[0]

    def work() -> None:
        for number in range(20):
            loop.call_soon(lambda number=number: calls.append((number, free_elsewhere())))  # type: ignore[misc]
        loop.call_soon(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
    assert calls == [(number, False) for number in range(20)]


def test_a_call_that_asks_for_itself_again_lets_the_rest_have_its_turn(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair

    def again() -> None:
        loop.call_soon(again)

    loop.add_reader(one.fileno(), loop.stop)
    again()
    other.send(b"x")
    loop.run()


def test_an_exception_of_a_callback_comes_out_of_run(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("from a callback")

    loop.call_soon(fail)
    with pytest.raises(ValueError, match="from a callback"):
        loop.run()


def test_a_stop_before_run_is_not_lost(loop: Loop) -> None:
    """A guest may power off before the loop has started."""
    loop.stop()
    loop.run()
    loop.call_later(0.01, loop.stop)  # and it counts for one run
    start = time.monotonic()
    loop.run()
    assert time.monotonic() - start >= 0.01


def test_a_signal_is_a_call_whichever_thread_it_hits(loop: Loop) -> None:
    seen: list[tuple[str, int]] = []

    def seen_by(name: str) -> Turn:
        def callback() -> None:
            seen.append((name, threading.get_ident()))
            if len(seen) == 2:
                loop.stop()

        return callback

    loop.on_signal(signal.SIGUSR2, seen_by("usr2"))
    loop.on_signal(signal.SIGALRM, seen_by("alrm"))
    release = threading.Event()
    idle = threading.Thread(target=release.wait)
    idle.start()
    assert idle.ident is not None
    signal.pthread_kill(idle.ident, signal.SIGUSR2)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    loop.run()
    release.set()
    idle.join()
    assert seen == [("usr2", threading.get_ident()), ("alrm", threading.get_ident())]


def test_an_idle_loop_does_not_wake(loop: Watched, pair: tuple[socket.socket, socket.socket]) -> None:
    loop.add_reader(pair[0].fileno(), lambda: None)
    loop.on_signal(signal.SIGUSR2, lambda: None)
    loop.call_later(1000, lambda: None)
    loop.call_later(0.05, lambda: None).cancel()
    loop.run_for(0.3)
    assert loop.wakes <= 3  # the timers set before, the one that ends it; once more where epoll rounded down


def test_a_timer_of_another_thread_shortens_the_sleep(loop: Watched) -> None:
    def set_timer() -> None:
        time.sleep(0.05)
        with loop.lock:
            loop.call_later(0.05, loop.stop)

    thread = threading.Thread(target=set_timer)
    thread.start()
    start = time.monotonic()
    loop.run()
    thread.join()
    assert time.monotonic() - start < 5  # else it never returns


def test_closing_gives_descriptors_and_signals_back() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    loop = Loop(threading.RLock())
    loop.on_signal(signal.SIGUSR2, lambda: None)
    loop.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_call_that_waits_already_is_not_made_twice(loop: Loop) -> None:
    """A guest that notifies without end has no more turns than one that notifies once."""
    called: list[str] = []

    def one() -> None:
        called.append("one")
        if len(called) == 1:
            loop.call_once(one)  # it does not wait any more

    for _ in range(3):
        loop.call_once(one)
    loop.call_soon(lambda: loop.call_soon(loop.stop))
    loop.run()
    assert called == ["one", "one"]
