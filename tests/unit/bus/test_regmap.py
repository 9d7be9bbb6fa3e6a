"""Register maps against a plain array of bytes, the simplest thing that can be right."""

from __future__ import annotations

from enum import Enum, auto

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.bus.regmap import RegisterMap, RegisterPage


class Reg(Enum):
    SELECT = auto()
    STATUS = auto()
    ADDRESS = auto()
    LAST = auto()


# Gaps at 5 to 7, 16 to 29 and behind the end.
PLACES = [(Reg.SELECT, 0, 4), (Reg.STATUS, 4, 1), (Reg.ADDRESS, 8, 8), (Reg.LAST, 30, 2)]
SIZE = 32
MAP = RegisterMap(PLACES, SIZE)
MAPPED = {byte for _, start, width in PLACES for byte in range(start, start + width)}

accesses = st.tuples(st.integers(0, SIZE + 8), st.integers(1, 8), st.integers(0, (1 << 64) - 1))


class Plain:
    """A device that stores whatever it is told, through the map only."""

    def __init__(self) -> None:
        self.values = dict.fromkeys(Reg, 0)
        self.stores: list[tuple[Reg, int]] = []

    def store(self, register: Reg, value: int) -> None:
        self.values[register] = value
        self.stores.append((register, value))

    def write(self, offset: int, width: int, value: int) -> None:
        MAP.write(offset, width, value, self.store, self.values.__getitem__)

    def read(self, offset: int, width: int) -> int:
        return MAP.read(offset, width, self.values.__getitem__)


@given(st.lists(accesses, max_size=30))
def test_any_access_behaves_like_bytes_with_all_ones_in_the_gaps(script: list[tuple[int, int, int]]) -> None:
    device = Plain()
    page = RegisterPage(MAP, memoryview(bytearray(SIZE)))
    model = bytearray(0 if byte in MAPPED else 0xFF for byte in range(SIZE + 16))
    for offset, width, value in script:
        device.write(offset, width, value)
        page.write(offset, width, value, page.__setitem__)
        for byte in MAPPED.intersection(range(offset, offset + width)):
            model[byte] = value >> 8 * (byte - offset) & 0xFF
        expected = int.from_bytes(model[offset : offset + width], "little")
        assert device.read(offset, width) == expected
        assert page.read(offset, width) == expected
        assert page.view == model[:SIZE]


def test_halves_of_a_64_bit_field_merge() -> None:
    device = Plain()
    device.write(8, 4, 0x1111_2222)
    device.write(12, 4, 0x3333_4444)
    assert device.values[Reg.ADDRESS] == 0x3333_4444_1111_2222


def test_a_straddling_write_stores_each_register_once_lowest_first() -> None:
    device = Plain()
    device.write(2, 8, 0x8877_6655_4433_2211)
    assert device.stores == [(Reg.SELECT, 0x2211_0000), (Reg.STATUS, 0x33), (Reg.ADDRESS, 0x8877)]


def test_a_whole_write_does_not_ask_for_the_present_value() -> None:
    def never(register: Reg) -> int:
        raise AssertionError(register)

    device = Plain()
    MAP.write(0, 4, 7, device.store, never)
    MAP.write(0, 5, 0x01_0000_0007, device.store, never)
    assert device.stores == [(Reg.SELECT, 7), (Reg.SELECT, 7), (Reg.STATUS, 1)]


def test_a_value_wider_than_the_access_is_cut() -> None:
    device = Plain()
    device.write(4, 1, 0xABCD)
    assert device.stores == [(Reg.STATUS, 0xCD)]


def test_names_are_for_reports() -> None:
    assert [MAP.name(offset) for offset in (0, 3, 4, 5, 15, 99)] == [
        "select",
        "select",
        "status",
        "gap",
        "address",
        "gap",
    ]


@pytest.mark.parametrize(
    "places",
    [
        [(Reg.SELECT, 0, 4), (Reg.STATUS, 3, 1)],
        [(Reg.SELECT, 0, 4), (Reg.SELECT, 8, 4)],
        [(Reg.SELECT, SIZE - 2, 4)],
        [(Reg.SELECT, -1, 4)],
        [(Reg.SELECT, 0, 0)],
    ],
    ids=["overlap", "twice", "behind-end", "before-start", "empty"],
)
def test_a_map_that_contradicts_itself_is_refused(places: list[tuple[Reg, int, int]]) -> None:
    with pytest.raises(ValueError, match=r"SELECT|STATUS"):
        RegisterMap(places, SIZE)
