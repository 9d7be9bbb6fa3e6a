"""The IOAPIC as a driver programs it: through IOREGSEL and IOWIN, read from the page."""

from __future__ import annotations

import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.pages import FakePages
from nemu.arch.x86_64 import layout
from nemu.arch.x86_64.ioapic import IoApic

MASKED, LEVEL, LOGICAL = 1 << 16, 1 << 15, 1 << 11


class Driver:
    """The guest's side."""

    def __init__(self, pins: int = layout.IOAPIC_PINS) -> None:
        self.pages = FakePages()
        self.messages: list[tuple[int, int]] = []
        self.ioapic = IoApic(
            self.pages, lambda address, data: self.messages.append((address, data)), pins=pins
        )

    def get(self, index: int) -> int:
        self.ioapic.write(0x00, 4, index)
        (value,) = struct.unpack_from("<I", self.pages.view, 0x10)  # as the guest: no exit
        assert value == self.ioapic.read(0x10, 4)
        return int(value)

    def put(self, index: int, value: int) -> None:
        self.ioapic.write(0x00, 4, index)
        self.ioapic.write(0x10, 4, value)

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        self.put(0x11 + 2 * pin, destination << 24)
        self.put(0x10 + 2 * pin, low)


def test_version_tells_the_pins_and_an_eoi_register() -> None:
    assert Driver().get(0x01) == (layout.IOAPIC_PINS - 1) << 16 | 0x20
    assert Driver(pins=24).get(0x01) == 23 << 16 | 0x20


def test_the_id_keeps_four_bits() -> None:
    driver = Driver()
    driver.put(0x00, 0xFFFF_FFFF)
    assert driver.get(0x00) == 0x0F00_0000
    assert driver.get(0x02) == 0x0F00_0000


def test_pins_start_masked_and_read_only_bits_stay_zero() -> None:
    driver = Driver()
    assert [driver.get(index) for index in (0x10, 0x11, 0x12, 0x13)] == [MASKED, 0, MASKED, 0]
    driver.put(0x10, 0xFFFF_FFFF)
    driver.put(0x11, 0xFFFF_FFFF)
    assert (driver.get(0x10), driver.get(0x11)) == (0x0001_AFFF, 0xFF00_0000)
    assert driver.get(0x12) == MASKED


def test_registers_that_do_not_exist_read_zero_and_ignore_writes() -> None:
    driver = Driver()
    for index in [*range(0x03, 0x10), *range(0x14, 0x100)]:
        driver.put(index, 0xFFFF_FFFF)
        assert driver.get(index) == 0


@pytest.mark.parametrize(
    ("low", "destination", "message"),
    [
        (0x31, 0, (0xFEE0_0000, 0x31)),
        (0x31, 0x7E, (0xFEE7_E000, 0x31)),
        (0xFE | LOGICAL, 0xFF, (0xFEEF_F004, 0xFE)),
        (0x31 | 0x100 | LOGICAL, 3, (0xFEE0_300C, 0x131)),
        (0x400, 1, (0xFEE0_1000, 0x400)),
        (0x31 | LEVEL, 0, (0xFEE0_0000, 0x31)),
    ],
    ids=["fixed", "other-cpu", "logical", "lowest-priority", "nmi", "level"],
)
def test_an_edge_becomes_the_message_of_its_entry(
    low: int, destination: int, message: tuple[int, int]
) -> None:
    driver = Driver()
    driver.program(1, low, destination)
    driver.ioapic.line(1).signal()
    assert driver.messages == [message]
    driver.ioapic.line(0).signal()
    assert driver.messages == [message]


@pytest.mark.parametrize("low", [0x0F, 0x231, 0x331, 0x531, 0x631, 0x731])
def test_illegal_vectors_and_modes_are_dropped(low: int) -> None:
    driver = Driver()
    driver.program(0, low)
    driver.ioapic.line(0).signal()
    assert driver.messages == []


def test_a_masked_pin_remembers_one_edge() -> None:
    driver = Driver()
    driver.program(0, 0x31 | MASKED)
    for _ in range(3):
        driver.ioapic.line(0).signal()
    assert driver.messages == []
    driver.program(0, 0x31)
    driver.program(0, 0x31)
    assert driver.messages == [(0xFEE0_0000, 0x31)]


def test_a_level_pin_never_waits_for_an_eoi() -> None:
    driver = Driver()
    driver.program(0, 0x31 | LEVEL)
    driver.ioapic.line(0).signal()
    assert driver.get(0x10) == 0x31 | LEVEL  # remote IRR (bit 14) is 0
    driver.ioapic.line(0).signal()
    driver.ioapic.write(0x40, 4, 0x31)
    driver.ioapic.line(0).signal()
    assert len(driver.messages) == 3


def test_a_pin_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="pins 0 to 1"):
        Driver().ioapic.line(2)


def test_edges_from_other_threads_are_neither_lost_nor_doubled() -> None:
    driver = Driver()
    line = driver.ioapic.line(0)
    driver.program(0, 0x31)

    def signal_often() -> None:
        for _ in range(500):
            line.signal()

    threads = [threading.Thread(target=signal_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.messages) == 1500


accesses = st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1))
near = st.tuples(
    st.sampled_from([0, 1, 0xC, 0x10, 0x12, 0x3E, 0x40]), st.integers(1, 8), st.integers(0, 0xFF)
)


@given(st.lists(st.one_of(accesses, near, st.none()), max_size=40))
def test_any_access_is_answered_and_only_legal_messages_leave(
    script: list[tuple[int, int, int] | None],
) -> None:
    driver = Driver()
    for step in script:
        if step is None:
            driver.ioapic.line(0).signal()
            driver.ioapic.line(1).signal()
        else:
            driver.ioapic.write(*step)
            driver.ioapic.read(step[0], step[1])
    assert len(driver.messages) <= 4 * len(script)
    for address, data in driver.messages:
        assert address >> 20 == 0xFEE
        assert data & 0x700 == 0x400 or data & 0xFF >= 16
        assert data & ~0x5FF == 0
