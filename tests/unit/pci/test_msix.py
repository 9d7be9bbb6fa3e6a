"""MSI-X: which message goes out, when, and what the guest reads of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.router import FakeRouter
from nemu.pci.msix import CONTROL_ENABLE, CONTROL_FUNCTION_MASK, MsixTable

ADDRESS, DATA = 0xFEE0_1000, 0x41


class Wired:
    def __init__(self, count: int = 3) -> None:
        self.router = FakeRouter()
        self.table = memoryview(bytearray(0x800))
        self.pending = memoryview(bytearray(0x800))
        self.msix = MsixTable(count, self.table, self.pending, self.router)

    def program(self, index: int, address: int = ADDRESS, data: int = DATA, control: int = 0) -> None:
        """As Linux does: four 4-byte writes."""
        for offset, value in enumerate((address & 0xFFFF_FFFF, address >> 32, data, control)):
            self.msix.write(16 * index + 4 * offset, 4, value)

    def signal(self, index: int) -> None:
        self.msix.vectors[index].signal()

    @property
    def sent(self) -> list[tuple[int, int]]:
        return self.router.sent


@pytest.fixture
def wired() -> Iterator[Wired]:
    one = Wired()
    yield one
    one.msix.close()


def test_vectors_start_masked_and_empty(wired: Wired) -> None:
    assert wired.table[:48] == struct.pack("<QII", 0, 0, 1) * 3
    wired.msix.set_control(CONTROL_ENABLE)
    assert wired.router.connected == {}


def test_a_message_goes_out_as_it_was_written(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.program(1, 0x12_FEE0_2000, 0xABCD_0042)
    wired.signal(1)
    assert wired.sent == [(0x12_FEE0_2000, 0xABCD_0042)]
    assert wired.pending[0] == 0


def test_reserved_bits_of_an_entry_read_zero(wired: Wired) -> None:
    wired.program(0, (1 << 64) - 1, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert struct.unpack_from("<QII", wired.table) == ((1 << 64) - 4, 0xFFFF_FFFF, 1)


@pytest.mark.parametrize("how", ["vector", "function", "disabled"])
def test_a_masked_signal_is_pending_and_comes_when_unmasked(wired: Wired, how: str) -> None:
    wired.program(2, control=1 if how == "vector" else 0)
    masked = {"vector": CONTROL_ENABLE, "function": CONTROL_ENABLE | CONTROL_FUNCTION_MASK, "disabled": 0}
    wired.msix.set_control(masked[how])
    wired.signal(2)
    assert (wired.sent, wired.pending[0]) == ([], 1 << 2)
    wired.msix.write(16 * 2 + 12, 4, 0)
    wired.msix.set_control(CONTROL_ENABLE)
    assert (wired.sent, wired.pending[0]) == ([(ADDRESS, DATA)], 0)


def test_many_signals_while_masked_become_one(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.program(0, control=1)
    for _ in range(5):
        wired.signal(0)
    wired.program(0)
    assert wired.sent == [(ADDRESS, DATA)]


def test_masking_holds_the_next_one_back(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.program(0)
    wired.signal(0)
    wired.msix.write(12, 4, 1)
    wired.signal(0)
    assert wired.sent == [(ADDRESS, DATA)]


def test_rewriting_an_unmasked_entry_routes_the_new_message(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.program(0)
    wired.msix.write(8, 4, 0x55)
    wired.signal(0)
    assert wired.sent == [(ADDRESS, 0x55)]


def test_one_8_byte_write_and_single_bytes_do_the_same(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.msix.write(0, 8, ADDRESS)
    wired.msix.write(8, 8, DATA)
    for index, byte in enumerate(struct.pack("<QII", ADDRESS, DATA, 0)):
        wired.msix.write(16 + index, 1, byte)
    wired.signal(0)
    wired.signal(1)
    assert wired.sent == [(ADDRESS, DATA)] * 2


def test_a_write_over_two_entries_changes_both_and_one_past_the_end_is_cut(wired: Wired) -> None:
    wired.msix.set_control(CONTROL_ENABLE)
    wired.msix.write(12, 8, 0x8000_0000_0000_0000 | ADDRESS << 32 & 0x7FFF_FFFF_0000_0000)
    assert wired.table[12] == 0
    assert set(wired.router.connected) == {wired.msix.vectors[0].eventfd}
    wired.msix.write(44, 8, 0xFFFF_FFFF_0000_0000)
    assert wired.table[48:56] == bytes(8)
    wired.msix.write(48, 8, 1)  # wholly behind: nothing


def test_closing_gives_every_descriptor_back_and_a_late_signal_is_lost() -> None:
    before = os.listdir("/proc/self/fd")
    one = Wired(17)
    fds = [vector.eventfd for vector in one.msix.vectors]
    one.msix.close()
    one.signal(3)
    assert one.router.forgotten == fds
    assert os.listdir("/proc/self/fd") == before


OPERATIONS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 60), st.integers(1, 8), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("control"), st.just(0), st.just(0), st.integers(0, 0xFFFF)),
    st.tuples(st.just("signal"), st.integers(0, 2), st.just(0), st.just(0)),
)


@given(st.lists(OPERATIONS, max_size=40))
def test_exactly_the_unmasked_vectors_are_routed_as_the_table_reads(
    operations: list[tuple[str, int, int, int]],
) -> None:
    one = Wired()
    try:
        control = 0
        for kind, where, width, value in operations:
            if kind == "write":
                one.msix.write(where, width, value & (1 << 8 * width) - 1)
            elif kind == "control":
                control = value
                one.msix.set_control(value)
            else:
                one.signal(where)
            routed = {}
            for index, vector in enumerate(one.msix.vectors):
                address, data, mask = struct.unpack_from("<QII", one.table, 16 * index)
                if control & 0xC000 == 0x8000 and not mask & 1:
                    routed[vector.eventfd] = (address, data)
                    assert not one.pending[0] >> index & 1
            assert one.router.connected == routed
            assert one.table[48:] == bytes(0x800 - 48)
            assert one.pending[1:] == bytes(0x7FF)
    finally:
        one.msix.close()
