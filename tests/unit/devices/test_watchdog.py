"""The watchdog: it barks unless it is fed, as its table tells a driver to do."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.iasl import iasl
from fakes.loop import FakeLoop, FakeTimer
from nemu.devices import watchdog
from nemu.devices.watchdog import Sticky, Watchdog

CONTROL, COUNTDOWN, RESTART, REMAINING, STATUS = 0x00, 0x04, 0x08, 0x0C, 0x10
GPA = 0xFEA0_4000


class Bench:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.sticky = Sticky()
        self.barks = 0
        self.device = Watchdog(self.loop, self.sticky, self._bark)

    def _bark(self) -> None:
        self.barks += 1

    def write(self, offset: int, value: int) -> None:
        self.device.write(offset, 4, value)

    def read(self, offset: int) -> int:
        return self.device.read(offset, 4)

    @property
    def timer(self) -> FakeTimer:
        return self.loop.timers[-1]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_of_the_host_waits_for_a_stopped_watchdog(bench: Bench) -> None:
    bench.write(COUNTDOWN, 50)
    bench.write(RESTART, 1)
    assert bench.loop.timers == []
    assert [bench.read(offset) for offset in range(0, 0x14, 4)] == [0, 50, 0, 0, 0]


def test_it_runs_out_and_is_stopped_then(bench: Bench) -> None:
    bench.write(COUNTDOWN, 50)
    bench.write(CONTROL, 1)
    assert bench.timer.seconds == 5
    assert bench.read(CONTROL) == 1
    assert 45 <= bench.read(REMAINING) <= 50
    bench.timer.expire()
    assert (bench.barks, bench.read(CONTROL), bench.read(REMAINING)) == (1, 0, 0)


def test_feeding_starts_a_new_countdown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench.write(CONTROL, 1)
    first = bench.timer
    now += 20
    assert bench.read(REMAINING) == 100
    bench.write(RESTART, 1)
    assert bench.read(REMAINING) == 300
    first.expire()
    assert bench.barks == 0
    bench.timer.expire()
    assert bench.barks == 1


def test_it_can_be_stopped(bench: Bench) -> None:
    bench.write(CONTROL, 1)
    bench.write(CONTROL, 0)
    bench.timer.expire()
    assert (bench.barks, bench.read(CONTROL)) == (0, 0)


def test_the_time_of_a_paused_machine_does_not_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench.write(CONTROL, 1)
    now += 10
    bench.device.stop()
    bench.timer.expire()  # an hour later
    now += 3600
    bench.device.start()
    assert bench.barks == 0
    assert round(bench.timer.seconds) == 20
    assert bench.read(REMAINING) == 200
    bench.timer.expire()
    assert bench.barks == 1
    timers = len(bench.loop.timers)
    for call in (bench.device.stop, bench.device.start, bench.device.start):  # of one that is stopped
        call()
    assert (len(bench.loop.timers), bench.read(CONTROL)) == (timers, 0)


def test_a_machine_that_ends_leaves_no_timer(bench: Bench) -> None:
    bench.write(CONTROL, 1)
    bench.device.close()
    bench.timer.expire()
    assert bench.barks == 0


@pytest.mark.parametrize(
    ("value", "kept"), [(0, 1), (1, 1), (0xFFFF, 0xFFFF), (0x10000, 0xFFFF), (1 << 31, 0xFFFF)]
)
def test_the_time_out_is_bounded(bench: Bench, value: int, kept: int) -> None:
    bench.write(COUNTDOWN, value)
    assert bench.read(COUNTDOWN) == kept


def test_a_reset_does_not_forget_that_it_ran_out(bench: Bench) -> None:
    bench.write(CONTROL, 1)
    bench.timer.expire()
    after = Watchdog(bench.loop, bench.sticky, lambda: None)
    assert after.read(STATUS, 4) == 1
    after.write(STATUS, 4, 1)
    assert after.read(STATUS, 4) == 0


@given(
    st.lists(st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=30)
)
def test_any_accesses_keep_one_timer_at_most(script: list[tuple[int, int, int]]) -> None:
    bench = Bench()
    for offset, width, value in script:
        bench.device.write(offset, width, value)
        assert 0 <= bench.device.read(offset, width) < 1 << 8 * width
        assert 1 <= bench.read(COUNTDOWN) <= 0xFFFF
    for timer in bench.loop.timers:
        timer.expire()
    assert bench.barks <= 1


# --- the table, read as the driver reads it --------------------------------------------------


def actions() -> dict[int, tuple[int, int, int, int]]:
    """(instruction, address, value, mask) by action."""
    data = watchdog.table(GPA)
    (count,) = struct.unpack_from("<I", data, 64)
    assert len(data) == 68 + 24 * count
    found = {}
    for offset in range(68, len(data), 24):
        action, instruction, space, width, bit, access, address, value, mask = struct.unpack_from(
            "<BBxxBBBBQII", data, offset
        )
        assert (space, width, bit, access) == (0, 32, 0, 3)  # system memory, a dword
        found[action] = (instruction, address, value, mask)
    return found


def run(bench: Bench, action: int, parameter: int = 0) -> int:
    """What Linux' wdat_wdt does for an action."""
    instruction, address, value, mask = actions()[action]
    offset = address - GPA
    if instruction == 0:
        return int(bench.read(offset) & mask == value)
    if instruction == 1:
        return bench.read(offset) & mask
    bench.write(offset, (value if instruction == 2 else parameter) & mask)
    return 0


def test_the_header_is_what_linux_wants() -> None:
    data = watchdog.table(GPA)
    assert data[:4] == b"WDAT"
    assert sum(data) % 256 == 0
    # No PCI device (all 0xff), a period in milliseconds, its most and least number, enabled.
    assert struct.unpack_from("<IHBBB3xIIIB", data, 36) == (32, 0xFF, 0xFF, 0xFF, 0xFF, 100, 0xFFFF, 1, 1)


def test_a_driver_arms_feeds_and_disarms_it_by_the_table(bench: Bench) -> None:
    assert (run(bench, 0x08), run(bench, 0x0A)) == (0, 1)  # running? stopped?
    run(bench, 0x06, 70)
    assert run(bench, 0x05) == 70
    run(bench, 0x09)
    assert (run(bench, 0x08), run(bench, 0x0A)) == (1, 0)
    assert 60 <= run(bench, 0x04) <= 70
    run(bench, 0x01)
    assert len(bench.loop.timers) == 2
    run(bench, 0x0B)
    assert run(bench, 0x08) == 0
    bench.sticky.status = 1
    assert run(bench, 0x20) == 1
    run(bench, 0x21)
    assert run(bench, 0x20) == 0


def test_iasl_reads_the_table_and_makes_the_same_again(tmp_path: Path) -> None:
    made = watchdog.table(GPA)
    (tmp_path / "wdat.dat").write_bytes(made)
    iasl("-d", "wdat.dat", cwd=tmp_path)
    assert "Watchdog Entry Count : 0000000A" in (tmp_path / "wdat.dsl").read_text()
    iasl("wdat.dsl", cwd=tmp_path)
    again = (tmp_path / "wdat.aml").read_bytes()
    assert (again[:9], again[36:]) == (made[:9], made[36:])


def test_it_counts_nothing_while_the_guest_stands_still(bench: Bench) -> None:
    bench.device.stop()
    bench.device.start()
    assert bench.loop.timers == [], "it was not running"
    bench.write(COUNTDOWN, 50)
    bench.write(CONTROL, 1)
    first = bench.timer
    bench.device.stop()
    first.expire()
    assert bench.barks == 0
    bench.device.start()
    assert 4 < bench.timer.seconds <= 5
    assert bench.read(CONTROL) == 1
    bench.timer.expire()
    assert bench.barks == 1
    bench.device.start()
    assert len(bench.loop.timers) == 2
