"""pvpanic: what the guest may say, and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.pages import FakePages
from nemu.devices.pvpanic import PanicEvent, PvPanic


class Wired:
    def __init__(self) -> None:
        self.pages = FakePages()
        self.reports: list[PanicEvent] = []
        self.device = PvPanic(self.pages, gpa=0xFEA0_2000, report=self.reports.append)


def test_reads_tell_the_supported_events() -> None:
    wired = Wired()
    assert wired.device.read(0, 1) == wired.pages.view[0] == 0x03


def test_a_panic_is_reported_once() -> None:
    wired = Wired()
    for _ in range(100):
        wired.device.write(0, 1, 0x01)
    assert wired.reports == [PanicEvent.PANICKED]


def test_a_crash_kernel_is_told_apart_from_a_panic() -> None:
    wired = Wired()
    wired.device.write(0, 1, 0x02)
    wired.device.write(0, 1, 0x03)
    assert wired.reports == [PanicEvent.CRASH_LOADED, PanicEvent.PANICKED]


@given(
    st.lists(st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=20)
)
def test_any_write_reports_at_most_each_event_and_leaves_the_page(script: list[tuple[int, int, int]]) -> None:
    wired = Wired()
    for offset, width, value in script:
        wired.device.write(offset, width, value)
        wired.device.read(offset, width)
    assert len(wired.reports) <= 2
    assert wired.pages.view == b"\x03" + b"\xff" * 4095
