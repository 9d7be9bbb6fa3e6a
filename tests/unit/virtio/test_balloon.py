"""virtio-balloon: what the guest gives back is RAM and nothing else, whatever it names."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import RAM_SIZE, Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.balloon import Balloon
from nemu.errors import GuestError
from nemu.memory import GuestRam, map_image
from nemu.virtio import balloon as module
from nemu.virtio.balloon import VirtioBalloon

PAGE = 4096
STATS, DEFLATE_ON_OOM, POISON, REPORTING = 1 << 1, 1 << 2, 1 << 4, 1 << 5
LINUX = STATS | DEFLATE_ON_OOM | REPORTING
FIRST = 256  # pages: behind the rings and buffers of the drivers


class Bench:
    """A device with a driver on each queue.  ``inflate`` and the others are drivers."""

    def __init__(self, ram: GuestRam, loop: FakeLoop, features: int = LINUX, **options: Any) -> None:
        self.ram, self.loop = ram, loop
        self.balloon = Balloon(RAM_SIZE, RAM_SIZE)
        self.device = VirtioBalloon("virtio-balloon0", self.balloon, ram, loop, **options)
        self.transport = FakeTransport()
        sizes = self.device.queue_sizes
        self.drivers = [
            Driver(ram, min(size, 32), base=0x10000 + 0x18000 * n, end=0x10000 + 0x18000 * (n + 1))
            for n, size in enumerate(sizes)
        ]
        self.inflate, self.deflate, self.stats, self.reporting, self.by_the_book = self.drivers
        self.device.activate(features, tuple(driver.queue() for driver in self.drivers), self.transport)

    def pages(self, *pfns: int) -> None:
        self.inflate.add(readable=[struct.pack(f"<{len(pfns)}I", *pfns)])

    def give(self) -> None:
        with self.loop.lock:
            self.device.notify(0)
        self.loop.settle()

    def report(self, driver: Driver, *ranges: tuple[int, int], index: int = 3) -> None:
        """Make a report of (gpa, length) ranges."""
        for number, (gpa, length) in enumerate(ranges):
            last = number + 1 == len(ranges)
            driver.write_descriptor(number, gpa, length, 2 if last else 3, number + 1)
        driver.make_available(0)
        self.device.notify(index)
        self.loop.settle()

    def used(self, driver: Driver) -> int:
        return int.from_bytes(self.ram.read(driver.used + 2, 2), "little")

    def zero(self, page: int) -> bool:
        return self.ram.read(page * PAGE, PAGE) == bytes(PAGE)


@pytest.fixture
def bench(ram: GuestRam, loop: FakeLoop) -> Bench:
    fill(ram)
    return Bench(ram, loop)


def fill(ram: GuestRam) -> None:
    ram.write(0, bytes(FIRST * PAGE))  # the rings are there then: they do not count later
    for page in range(FIRST, RAM_SIZE // PAGE):
        ram.write(page * PAGE, b"x" * PAGE)


def taken(ram: GuestRam) -> int:
    """Pages of the host that guest RAM takes."""
    return os.fstat(ram.fd).st_blocks * 512 // PAGE


def test_inflating_gives_just_these_pages_back(bench: Bench) -> None:
    before = taken(bench.ram)
    bench.pages(FIRST + 7, FIRST + 6, FIRST + 5, FIRST + 20)
    bench.give()
    assert before - taken(bench.ram) == 4
    given_back = [page for page in range(FIRST, FIRST + 30) if bench.zero(page)]
    assert [page - FIRST for page in given_back] == [5, 6, 7, 20]
    assert [used.written for used in bench.inflate.collect()] == [0]
    assert bench.inflate.interrupts == 1


def test_neighbours_are_given_back_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(bench.ram, "discard", lambda *one: calls.append(one))
    bench.pages(*range(FIRST + 255, FIRST - 1, -1), FIRST, FIRST)  # Linux often allocates downwards
    bench.give()
    assert calls == [(FIRST * PAGE, 256 * PAGE)]


def test_a_page_is_used_again_just_by_touching_it(bench: Bench) -> None:
    bench.pages(FIRST)
    bench.give()
    bench.deflate.add(readable=[struct.pack("<I", FIRST)])
    bench.device.notify(1)
    assert len(bench.deflate.collect()) == 1
    bench.ram.write(FIRST * PAGE, b"again")
    assert bench.ram.read(FIRST * PAGE, 5) == b"again"


def test_a_page_outside_ram_stops_the_device(bench: Bench) -> None:
    for pfn in (RAM_SIZE // PAGE, 0xFFFF_FFFF):
        bench.pages(pfn)
        with pytest.raises(GuestError, match="no RAM"):
            bench.device.notify(0)


@pytest.mark.parametrize("size", [1, 3, 4 * 4096 + 4])
def test_a_request_of_an_odd_size_stops_the_device(bench: Bench, size: int) -> None:
    bench.inflate.add(readable=[bytes(size)])
    with pytest.raises(GuestError, match="balloon request"):
        bench.device.notify(0)


def test_a_file_of_the_users_is_not_touched(ram: GuestRam, loop: FakeLoop, tmp_path: Path) -> None:
    """Persistent memory that the guest uses as RAM may end up in its balloon."""
    path = tmp_path / "file"
    path.write_bytes(b"y" * 16 * PAGE)
    fd = os.open(path, os.O_RDWR)
    ram.add(RAM_SIZE, map_image(fd, 16 * PAGE, readonly=False), fd)
    bench = Bench(ram, loop)
    bench.pages(RAM_SIZE // PAGE, RAM_SIZE // PAGE - 1)
    bench.give()
    bench.report(bench.reporting, (RAM_SIZE, 8 * PAGE))
    assert len(bench.inflate.collect()) == 1
    assert path.read_bytes() == b"y" * 16 * PAGE
    os.close(fd)


def test_the_work_of_a_turn_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(bench.ram, "discard", lambda gpa, length: calls.append(length))
    bench.pages(*range(0, 4096, 2))  # nothing can be joined
    bench.device.notify(0)
    turns = 1
    assert len(calls) <= module._TURN
    while bench.loop.soon:
        seen = len(calls)
        bench.loop.turn()
        turns += 1
        assert len(calls) - seen <= module._TURN
    assert len(calls) == 2048
    assert turns >= 8


def test_a_driver_that_notifies_in_a_loop_gets_no_more_turns(bench: Bench) -> None:
    bench.pages(*range(FIRST, 1024, 2))
    for _ in range(10):
        bench.device.notify(0)
    assert len(bench.loop.soon) == 1
    bench.loop.settle()
    assert len(bench.inflate.collect()) == 1


def test_a_huge_report_is_given_back_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(bench.ram, "discard", lambda *one: calls.append(one))
    monkeypatch.setattr(bench.ram, "gpa", lambda view: 0)
    monkeypatch.setattr(module, "_PIECE", 64 * PAGE)
    bench.report(bench.reporting, (0, RAM_SIZE))
    assert calls == [(gpa, 64 * PAGE) for gpa in range(0, RAM_SIZE, 64 * PAGE)]


@pytest.mark.parametrize("index", [3, 4])
def test_reported_pages_go_back_on_either_numbering_of_the_queue(bench: Bench, index: int) -> None:
    before = taken(bench.ram)
    start = FIRST * PAGE
    bench.report(bench.drivers[index], (start + 100, 4 * PAGE), (start + 8 * PAGE, 2 * PAGE), index=index)
    assert before - taken(bench.ram) == 5  # whole pages only
    assert bench.used(bench.drivers[index]) == 1
    assert bench.ram.read(start, 100) == b"x" * 100


def test_without_statistics_reporting_is_the_third_queue(ram: GuestRam, loop: FakeLoop) -> None:
    fill(ram)
    bench = Bench(ram, loop, features=REPORTING)
    before = taken(ram)
    bench.report(bench.stats, (FIRST * PAGE, PAGE), index=2)
    assert before - taken(ram) == 1


def test_a_guest_that_marks_free_pages_keeps_them(ram: GuestRam, loop: FakeLoop) -> None:
    fill(ram)
    bench = Bench(ram, loop, features=LINUX | POISON)
    before = taken(ram)
    bench.device.write_config(12, 4, 0xAAAA_AAAA)
    bench.report(bench.reporting, (FIRST * PAGE, 4 * PAGE))
    assert (taken(ram), bench.used(bench.reporting)) == (before, 1)
    bench.device.write_config(12, 4, 0)  # pages that are zero when free stay so
    bench.reporting.make_available(0)
    bench.device.notify(3)
    assert before - taken(ram) == 4


def test_features_follow_the_options(ram: GuestRam, loop: FakeLoop) -> None:
    balloon = Balloon(RAM_SIZE, RAM_SIZE)
    assert VirtioBalloon("b", balloon, ram, loop).features == LINUX | POISON
    bare = VirtioBalloon("b", balloon, ram, loop, reporting=False, deflate_on_oom=False)
    assert bare.features == STATS


def test_the_target_is_shown_to_the_guest(bench: Bench) -> None:
    bench.balloon.set_target(RAM_SIZE - 3 * PAGE)
    assert bytes(bench.device.config[:8]) == struct.pack("<II", 3, 0)
    assert bench.transport.config_changes == 1
    for asked, pages in ((RAM_SIZE + PAGE, 0), (1, 1023), (0, 1024), (-1, 1024), (1 << 70, 0)):
        bench.balloon.set_target(asked)
        assert struct.unpack_from("<I", bench.device.config) == (pages,)


def test_the_next_machine_is_asked_for_the_same(bench: Bench, loop: FakeLoop) -> None:
    bench.balloon.set_target(RAM_SIZE - 3 * PAGE)
    bench.device.write_config(4, 4, 3)
    other = VirtioBalloon("b", bench.balloon, bench.ram, loop)
    assert bytes(other.config[:4]) == struct.pack("<I", 3)
    assert (bench.balloon.target, bench.balloon.actual) == (RAM_SIZE - 3 * PAGE, RAM_SIZE)


def test_the_guest_says_how_much_it_gave(bench: Bench) -> None:
    seen: list[int] = []
    bench.balloon.watch(lambda: seen.append(bench.balloon.actual))
    bench.device.write_config(4, 4, 2)
    bench.device.write_config(4, 4, 0xFFFF_FFFF)  # a lie
    assert seen == [RAM_SIZE - 2 * PAGE, 0]
    bench.device.deactivate(lambda: None)  # the pages are still not in use
    assert bench.balloon.actual == 0
    bench.device.activate(LINUX, (None,) * 5, bench.transport)
    assert bench.balloon.actual == RAM_SIZE
    assert bench.device.config[4:8] == bytes(4)


def test_only_two_fields_can_be_written(bench: Bench) -> None:
    for offset in range(20):
        for width in (1, 2, 4, 8):
            bench.device.write_config(offset, width, (1 << 8 * width) - 1)
    assert bytes(bench.device.config) == bytes(4) + b"\xff" * 4 + bytes(4) + b"\xff" * 4


def test_statistics_come_when_asked_for(bench: Bench) -> None:
    first = struct.pack("<HQHQHQ", 4, 1 << 20, 5, 1 << 30, 0x7777, 1)
    bench.stats.add(readable=[first])
    bench.device.notify(2)
    assert bench.balloon.statistics == {"free_memory": 1 << 20, "total_memory": 1 << 30}
    assert bench.stats.collect() == []  # the device keeps the buffer
    bench.balloon.request_statistics()
    assert len(bench.stats.collect()) == 1
    bench.balloon.request_statistics()  # the guest has not answered yet
    assert bench.stats.collect() == []
    bench.stats.add(readable=[struct.pack("<HQ", 6, 99) + b"rest"])
    bench.device.notify(2)
    assert bench.balloon.statistics == {"available_memory": 99}


def test_a_flood_of_statistics_is_cut_and_the_latest_kept(bench: Bench) -> None:
    for number in range(8):
        bench.stats.add(readable=[struct.pack("<HQ", 4, number) * 50])
    bench.device.notify(2)
    assert len(bench.stats.collect()) == 7
    assert bench.balloon.statistics == {"free_memory": 7}


def test_statistics_are_asked_for_again_and_again_while_active(ram: GuestRam, loop: FakeLoop) -> None:
    bench = Bench(ram, loop, interval=2.5)
    assert [timer.seconds for timer in loop.timers] == [2.5]
    bench.stats.add(readable=[struct.pack("<HQ", 4, 1)])
    bench.device.notify(2)
    loop.timers[0].expire()
    assert len(bench.stats.collect()) == 1
    assert len(loop.timers) == 2
    bench.device.deactivate(lambda: None)
    loop.timers[1].expire()
    assert len(loop.timers) == 2


def test_nothing_happens_when_not_active(bench: Bench) -> None:
    done: list[bool] = []
    bench.pages(*range(0, 2000, 2))
    with bench.loop.lock:
        bench.device.notify(0)
        bench.device.deactivate(lambda: done.append(True))
    left = taken(bench.ram)
    bench.loop.settle()
    assert (done, taken(bench.ram)) == ([True], left)
    for index in range(5):
        bench.device.notify(index)
    bench.balloon.request_statistics()
    bench.balloon.set_target(PAGE)
    assert bench.transport.config_changes == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.one_of(st.integers(FIRST, 1023), st.integers(0, 0xFFFF_FFFF)), max_size=50), max_size=4
    )
)
def test_any_page_numbers_leave_all_other_pages(requests: list[list[int]]) -> None:
    ram, loop = GuestRam([(0, RAM_SIZE)]), FakeLoop()
    fill(ram)
    bench = Bench(ram, loop)
    safe = [page for page in range(FIRST, 1024) if not any(page in pfns for pfns in requests)]
    try:
        for pfns in requests:
            if pfns and all(pfn >= FIRST for pfn in pfns):
                bench.pages(*pfns)
                bench.give()
    except GuestError:
        pass
    assert all(ram.read(page * PAGE, 8) == b"x" * 8 for page in safe)
    ram.close()
