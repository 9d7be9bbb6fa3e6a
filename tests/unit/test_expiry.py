"""Time limits by one timer."""

from __future__ import annotations

from fakes.loop import FakeLoop
from nemu.expiry import Expiry


def tick(loop: FakeLoop) -> None:
    timers, loop.timers = loop.timers, []
    for timer in timers:
        timer.expire()


def test_what_is_not_removed_is_called_once_and_then_no_timer_runs() -> None:
    loop, called = FakeLoop(), list[str]()
    expiry = Expiry(loop, 10)
    for key in ("a", "b", "c"):
        expiry.add(key, lambda key=key: called.append(key))  # type: ignore[misc]
    assert [timer.seconds for timer in loop.timers] == [10]
    expiry.remove("b")
    expiry.remove("unknown")
    tick(loop)
    assert called == []
    tick(loop)
    assert called == ["a", "c"]
    assert loop.timers == []


def test_a_key_that_is_added_again_waits_anew() -> None:
    loop, called = FakeLoop(), list[int]()
    expiry = Expiry(loop, 10)
    expiry.add("a", lambda: called.append(1))
    tick(loop)
    expiry.add("a", lambda: called.append(2))
    tick(loop)
    assert called == []
    tick(loop)
    assert called == [2]


def test_a_call_may_add_and_remove() -> None:
    loop, called = FakeLoop(), list[int]()
    expiry = Expiry(loop, 10)

    def first() -> None:
        expiry.remove("a")
        expiry.add("b", lambda: called.append(1))

    expiry.add("a", first)
    for _ in range(4):
        tick(loop)
    assert called == [1]
    assert loop.timers == []


def test_after_clear_nothing_is_called_and_no_timer_runs() -> None:
    loop, called = FakeLoop(), list[int]()
    expiry = Expiry(loop, 10)
    expiry.add("a", lambda: called.append(1))
    expiry.clear()
    tick(loop)
    tick(loop)
    assert called == []
