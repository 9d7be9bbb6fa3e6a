"""Reaching BAR 0 through configuration space (virtio 1.2, 4.1.4.9)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.pci.config import SIZE, ConfigSpace
from nemu.pci.function import PciFunction
from nemu.virtio.pci_cfg import ConfigAccess

BAR_SIZE = 0x4000


class Registers:
    """A BAR that remembers what was written and reads as its own offset."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        assert offset + width <= BAR_SIZE
        return offset + 0x01000000 & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        assert offset + width <= BAR_SIZE
        self.written.append((offset, width, value))

    def register_name(self, offset: int) -> str:
        return hex(offset)


class Fixture:
    def __init__(self) -> None:
        self.view = memoryview(bytearray(SIZE))
        self.registers = Registers()
        space = ConfigSpace(self.view, vendor=0x1AF4, device=0x1044, class_code=0)
        self.function = PciFunction(space, None, ())  # type: ignore[arg-type]  # nothing is placed here
        ConfigAccess(self.function, self.registers, BAR_SIZE)
        self.start = self.view[0x34]

    def select(self, offset: int, width: int, bar: int = 0) -> None:
        self.function.write_config(self.start + 4, 1, bar)
        self.function.write_config(self.start + 8, 4, offset)
        self.function.write_config(self.start + 12, 4, width)

    @property
    def data(self) -> int:
        return int(struct.unpack_from("<I", self.view, self.start + 16)[0])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_read_gives_the_selected_register(width: int) -> None:
    one = Fixture()
    one.select(0x2004, width)
    assert one.data == 0x01002004 & (1 << 8 * width) - 1


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_write_reaches_the_selected_register_with_its_width(width: int) -> None:
    one = Fixture()
    one.select(0x14, width)
    one.function.write_config(one.start + 16, 4, 0xAABBCCDD)
    assert one.registers.written == [(0x14, width, 0xAABBCCDD & (1 << 8 * width) - 1)]


@pytest.mark.parametrize(
    ("bar", "offset", "width"),
    [(1, 0, 4), (0, BAR_SIZE, 1), (0, BAR_SIZE - 2, 4), (0, 2, 4), (0, 0, 0), (0, 0, 3), (0, 0xFFFFFFFF, 4)],
)
def test_what_the_specification_forbids_reaches_nothing(bar: int, offset: int, width: int) -> None:
    one = Fixture()
    one.select(offset, width, bar)
    one.function.write_config(one.start + 16, 4, 1)
    assert one.registers.written == []


@given(
    st.lists(
        st.tuples(st.integers(0, SIZE - 8), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=40
    )
)
def test_any_writes_never_leave_the_bar(writes: list[tuple[int, int, int]]) -> None:
    one = Fixture()
    for offset, width, value in writes:
        one.function.write_config(offset, width, value & (1 << 8 * width) - 1)
        one.function.write_config(one.start + offset % 20, width, value & (1 << 8 * width) - 1)
