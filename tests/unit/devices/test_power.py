"""Sleep and reset registers: only S5 and only the reset value do anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.pages import FakePages
from nemu.devices.power import RESET_VALUE, PowerControl

SLEEP_CONTROL, SLEEP_STATUS, RESET = 0, 1, 2
S5_ENABLE = 5 << 2 | 0x20


class Wired:
    """The device with its call-backs recorded in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pages = FakePages()
        self.power = PowerControl(
            self.pages,
            power_off=lambda: self.calls.append("off"),
            reset=lambda: self.calls.append("reset"),
        )


def test_s5_powers_off() -> None:
    wired = Wired()
    wired.power.write(SLEEP_STATUS, 1, 0x80)  # Linux clears WAK_STS first
    wired.power.write(SLEEP_CONTROL, 1, S5_ENABLE)
    assert wired.calls == ["off"]


@pytest.mark.parametrize("value", [5 << 2, 0x20, 3 << 2 | 0x20, 4 << 2 | 0x20])
def test_sleep_type_without_enable_or_another_state_does_nothing(value: int) -> None:
    wired = Wired()
    wired.power.write(SLEEP_CONTROL, 1, value)
    assert wired.calls == []


def test_only_the_reset_value_resets() -> None:
    for value in range(256):
        wired = Wired()
        wired.power.write(RESET, 1, value)
        assert wired.calls == (["reset"] if value == RESET_VALUE else [])


def test_sleep_type_reads_back_without_the_enable_bit() -> None:
    wired = Wired()
    wired.power.write(SLEEP_CONTROL, 1, 0xFF)
    assert wired.pages.view[SLEEP_CONTROL] == 7 << 2
    assert wired.pages.view[SLEEP_STATUS] == wired.pages.view[RESET] == 0


@given(
    st.lists(st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=20)
)
def test_any_access_is_answered_and_reads_are_the_page(script: list[tuple[int, int, int]]) -> None:
    wired = Wired()
    for offset, width, value in script:
        wired.power.write(offset, width, value)
        expected = int.from_bytes(wired.pages.view[offset : offset + width], "little")
        assert wired.power.read(offset, width) == expected
    assert len(wired.calls) <= 2 * len(script)
    assert wired.pages.view[4:] == b"\xff" * 4092
