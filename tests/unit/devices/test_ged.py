"""Generic event device: no event is lost, whatever the guest does between two of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.irq import FakeIrq
from fakes.pages import FakePages
from nemu.devices.ged import Event, GenericEventDevice

PENDING, ACKNOWLEDGE = 0, 4


class Wired:
    def __init__(self) -> None:
        self.pages = FakePages()
        self.irq = FakeIrq()
        self.ged = GenericEventDevice(self.pages, self.irq, gpa=0xFEA0_1000, gsi=16)

    @property
    def pending(self) -> int:
        return self.ged.read(PENDING, 4)


def test_the_power_button_is_pending_until_acknowledged() -> None:
    wired = Wired()
    wired.ged.power_button()
    assert (wired.pending, wired.irq.count) == (Event.POWER_BUTTON, 1)
    assert wired.pending == Event.POWER_BUTTON  # a read has no side effect
    wired.ged.write(ACKNOWLEDGE, 4, Event.POWER_BUTTON)
    assert wired.pending == 0


def test_acknowledging_one_event_keeps_another_that_came_after_the_read() -> None:
    wired = Wired()
    wired.ged.raise_event(Event(1 << 3))
    seen = wired.pending
    wired.ged.power_button()
    wired.ged.write(ACKNOWLEDGE, 4, seen)
    assert wired.pending == Event.POWER_BUTTON
    assert wired.irq.count == 2


def test_a_narrow_acknowledge_touches_only_its_bytes() -> None:
    wired = Wired()
    wired.ged.raise_event(Event(1 << 0 | 1 << 8))
    wired.ged.write(ACKNOWLEDGE + 1, 1, 0x01)
    assert wired.pending == 1 << 0


def test_pending_is_read_only_and_acknowledge_reads_zero() -> None:
    wired = Wired()
    wired.ged.write(PENDING, 4, 0xFFFF_FFFF)
    assert wired.pending == 0
    wired.ged.write(ACKNOWLEDGE, 4, 0xFFFF_FFFF)
    assert wired.ged.read(ACKNOWLEDGE, 4) == 0


@given(
    st.lists(st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=20)
)
def test_guest_accesses_only_ever_clear_bits_and_never_interrupt(script: list[tuple[int, int, int]]) -> None:
    wired = Wired()
    wired.ged.raise_event(Event(0xFFFF_FFFF))
    before = wired.pending
    for offset, width, value in script:
        wired.ged.write(offset, width, value)
        wired.ged.read(offset, width)
        assert wired.pending & ~before == 0
        before = wired.pending
    assert wired.irq.count == 1
    assert wired.pages.view[8:] == b"\xff" * 4088
