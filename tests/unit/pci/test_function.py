"""BARs that a guest sizes, moves, enables and disables in every order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.bus import FakeBus, FakeHandler
from fakes.pages import FakePages
from nemu.interfaces import Window
from nemu.pci.host import BUS_SIZE, HostBridge

ECAM, ECAM_SIZE = 0x8000_0000, 256 << 20
LOW = (0x9000_0000, 0xFEA0_0000)
HIGH = (1 << 39, 1 << 40)
SIZE = 0x4000
COMMAND, BAR_LOW, BAR_HIGH = 0x04, 0x10, 0x14
DECODE = 0x2


class Wired:
    """A host bridge with one function in slot 1, driven through ECAM."""

    def __init__(self) -> None:
        self.bus = FakeBus()
        self.pages = FakePages(BUS_SIZE)
        self.host = HostBridge(self.bus, self.pages, ECAM, ECAM_SIZE, (LOW, HIGH))
        self.function = self.host.add_function(1, vendor=0x1AF4, device=0x1042, class_code=0x018000)
        self.window = Window("bar", SIZE, FakeHandler())
        self.initial = self.host.allocate(1, SIZE)
        self.function.add_bar(self.window, self.initial)

    def write(self, register: int, value: int, width: int = 4) -> None:
        self.host.write((1 << 15) + register, width, value)

    def read(self, register: int) -> int:
        return int(struct.unpack_from("<I", self.pages.view, (1 << 15) + register)[0])

    @property
    def at(self) -> int | None:
        return self.bus.placed.get(self.window)


def test_nothing_is_decoded_at_power_on_and_the_bar_has_an_address() -> None:
    wired = Wired()
    assert wired.at is None
    assert wired.initial == HIGH[0]
    assert (wired.read(BAR_LOW), wired.read(BAR_HIGH)) == (
        wired.initial & 0xFFFF_FFFF | 4,
        wired.initial >> 32,
    )


def test_decoding_follows_the_command_register() -> None:
    wired = Wired()
    wired.write(COMMAND, 0x4, 2)  # bus master alone
    assert wired.at is None
    wired.write(COMMAND, 0x6, 2)
    assert wired.at == wired.initial
    wired.write(COMMAND, 0, 1)
    assert wired.at is None


def test_sizing_reads_back_the_mask_and_restores() -> None:
    wired = Wired()
    low, high = wired.read(BAR_LOW), wired.read(BAR_HIGH)
    wired.write(BAR_LOW, 0xFFFF_FFFF)
    wired.write(BAR_HIGH, 0xFFFF_FFFF)
    assert (wired.read(BAR_LOW), wired.read(BAR_HIGH)) == (0xFFFF_C004, 0xFFFF_FFFF)
    wired.write(BAR_LOW, low)
    wired.write(BAR_HIGH, high)
    wired.write(COMMAND, DECODE, 2)
    assert wired.at == wired.initial


def test_sizing_with_decoding_on_never_places_it_outside_an_aperture() -> None:
    wired = Wired()
    wired.write(COMMAND, DECODE, 2)
    wired.write(BAR_LOW, 0xFFFF_FFFF)
    wired.write(BAR_HIGH, 0xFFFF_FFFF)
    assert wired.at is None
    wired.write(BAR_LOW, wired.initial & 0xFFFF_FFFF)
    wired.write(BAR_HIGH, wired.initial >> 32)
    assert wired.at == wired.initial


@pytest.mark.parametrize("order", [(BAR_LOW, BAR_HIGH), (BAR_HIGH, BAR_LOW)])
def test_moving_in_halves_ends_at_the_new_place(order: tuple[int, int]) -> None:
    wired = Wired()
    wired.write(COMMAND, DECODE, 2)
    halves = {BAR_LOW: 0xC000_0000, BAR_HIGH: 0}
    for register in order:
        wired.write(register, halves[register])
    assert wired.at == 0xC000_0000


def test_moving_with_one_8_byte_write_and_with_single_bytes() -> None:
    wired = Wired()
    wired.write(COMMAND, DECODE, 2)
    wired.write(BAR_LOW, HIGH[0] + 0x8000, 8)
    assert wired.at == HIGH[0] + 0x8000
    wired.write(BAR_LOW + 1, 0x40, 1)
    assert wired.at == HIGH[0] + 0x4000


@pytest.mark.parametrize(
    "gpa",
    [
        0,
        0x10_0000,
        ECAM,
        LOW[0] - SIZE,
        LOW[1],
        LOW[1] - SIZE + 0x1000,
        0xFEE0_0000,
        1 << 32,
        HIGH[1],
        (1 << 64) - SIZE,
    ],
)
def test_outside_the_apertures_nothing_is_decoded(gpa: int) -> None:
    wired = Wired()
    wired.write(COMMAND, DECODE, 2)
    wired.write(BAR_LOW, gpa, 8)
    # An address that is not a multiple of the size is rounded down by the register itself.
    assert wired.at is None or wired.at == gpa & -SIZE
    assert wired.at is None or LOW[0] <= wired.at <= LOW[1] - SIZE


@pytest.mark.parametrize("gpa", [LOW[0], LOW[1] - SIZE, HIGH[0], HIGH[1] - SIZE])
def test_the_edges_of_the_apertures_are_decoded(gpa: int) -> None:
    wired = Wired()
    wired.write(BAR_LOW, gpa, 8)
    wired.write(COMMAND, DECODE, 2)
    assert wired.at == gpa


def test_an_empty_aperture_is_none() -> None:
    bus = FakeBus()
    host = HostBridge(bus, FakePages(BUS_SIZE), ECAM, ECAM_SIZE, (LOW, (1 << 40, 1 << 40)))
    assert host.allocate(1, SIZE) == LOW[0]


def test_addresses_run_out_with_an_error_that_says_so() -> None:
    host = HostBridge(FakeBus(), FakePages(BUS_SIZE), ECAM, ECAM_SIZE, ((0x9000_0000, 0x9000_9000),))
    assert [host.allocate(slot, SIZE) for slot in (1, 2, 1)] == [0x9000_0000, 0x9000_4000, 0x9000_0000]
    with pytest.raises(ValueError, match="no PCI window"):
        host.allocate(3, SIZE)


def test_unrelated_writes_do_not_touch_the_bus() -> None:
    wired = Wired()
    wired.write(COMMAND, DECODE, 2)
    moves = list(wired.bus.moves)
    for register in (*range(0x18, 0x40, 4), 0x40, 0xFC, 0x100, 0xFFC):
        wired.write(register, 0xFFFF_FFFF)
    wired.write(COMMAND, DECODE | 0x4, 2)
    wired.write(BAR_LOW, wired.initial & 0xFFFF_FFFF)
    assert wired.bus.moves == moves


def test_slots_without_a_function_read_all_ones_and_take_writes() -> None:
    wired = Wired()
    before = bytes(wired.pages.view)
    for slot, number in ((0, 1), (1, 1), (1, 7), (2, 0), (31, 0), (31, 7)):
        start = slot << 15 | number << 12
        assert wired.pages.view[start : start + 4096] == b"\xff" * 4096
        wired.host.write(start, 4, 0)
    wired.host.write(1 << 20, 4, 0)  # bus 1
    wired.host.write(ECAM_SIZE - 4, 4, 0)
    assert wired.pages.view == before
    assert wired.host.read(1 << 20, 4) == 0xFFFF_FFFF
    assert wired.host.read(ECAM_SIZE - 1, 1) == 0xFF


def test_a_write_across_the_end_of_a_function_stays_in_it() -> None:
    wired = Wired()
    before = bytes(wired.pages.view)
    wired.host.write((1 << 15) + 0xFFC, 8, 0)
    wired.host.write((1 << 15) - 4, 8, 0)  # the last function of slot 0, into ours
    assert wired.pages.view == before


def test_the_host_bridge_is_function_0_and_has_no_bar() -> None:
    wired = Wired()
    assert struct.unpack_from("<HH", wired.pages.view)[0] == 0x8086
    assert struct.unpack_from("<I", wired.pages.view, 8)[0] >> 8 == 0x060000
    wired.host.write(BAR_LOW, 4, 0xFFFF_FFFF)
    wired.host.write(COMMAND, 2, 0xFFFF)
    assert wired.pages.view[0x10:0x28] == bytes(0x18)


def test_slots_are_given_out_from_the_lowest() -> None:
    wired = Wired()
    assert wired.host.free_slot() == 2
    for slot in range(2, 32):
        wired.host.add_function(slot, vendor=1, device=2, class_code=3)
    assert wired.host.free_slot() is None


def test_registers_of_every_bus_have_a_name() -> None:
    wired = Wired()
    assert wired.host.register_name((1 << 15) + 4) == "00:01.0 command"
    assert wired.host.register_name((1 << 15) + 0x1004) == "00:01.1 0x4"
    assert wired.host.register_name((255 << 20) + 8) == "ff:00.0 0x8"


WRITES = st.tuples(
    st.sampled_from([0x04, 0x05, 0x06, 0x0F, 0x10, 0x11, 0x13, 0x14, 0x16, 0x17]),
    st.integers(1, 8),
    st.one_of(
        st.integers(0, (1 << 64) - 1),
        st.sampled_from([0, 2, 6, LOW[0], HIGH[0], HIGH[1] - SIZE, ECAM, (1 << 64) - 1]),
    ),
)


@given(st.lists(WRITES, max_size=40))
def test_the_window_is_always_where_the_registers_say(writes: list[tuple[int, int, int]]) -> None:
    wired = Wired()
    for register, width, value in writes:
        wired.write(register, value & (1 << 8 * width) - 1, width)
        gpa = (wired.read(BAR_HIGH) << 32 | wired.read(BAR_LOW)) & ~0xF
        inside = any(start <= gpa and gpa + SIZE <= end for start, end in (LOW, HIGH))
        decoding = wired.read(COMMAND) & DECODE
        assert wired.at == (gpa if decoding and inside else None)
        assert gpa % SIZE == 0


def test_inert_registers_are_the_bars_and_roms_that_no_write_changes() -> None:
    wired = Wired()
    offsets = list(wired.host.inert_registers())
    bridge = [0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30]
    assert offsets == [*bridge, *((1 << 15) + register for register in bridge[2:])]
    before = bytes(wired.pages.view)
    for offset in offsets:
        wired.host.write(offset, 4, 0xFFFF_FFFF)
    assert bytes(wired.pages.view) == before
