"""Hot-plug controllers: every event reaches the guest once, and a hostile one changes nothing of others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.pages import FakePages
from nemu.devices.hotplug import DEVICE_CHECK, EJECT_REQUEST, HotplugController
from nemu.interfaces import Ost

EVENT, ACKNOWLEDGE, EJECT, OST_SLOT, OST_EVENT, OST_STATUS = range(0, 24, 4)
STATE, DESCRIPTOR = 0x400, 0x800


class Wired:
    """A controller with slots 0 to 3, of which 0 stays and 1 may go."""

    def __init__(self) -> None:
        self.notified = 0
        self.ejected: list[int] = []
        self.reports: list[Ost] = []
        self.controller = HotplugController(
            "TEST",
            FakePages(),
            gpa=0xFEA0_5000,
            targets={slot: f"\\_SB.T{slot:03X}" for slot in range(4)},
            notify=self._notify,
            ejected=self.ejected.append,
            reported=self.reports.append,
        )
        self.controller.occupy(0, removable=False)
        self.controller.occupy(1)

    def _notify(self) -> None:
        self.notified += 1

    def read(self, offset: int, width: int = 4) -> int:
        return self.controller.read(offset, width)

    def write(self, offset: int, value: int) -> None:
        self.controller.write(offset, 4, value)

    def states(self) -> list[int]:
        return [self.read(STATE + slot, 1) for slot in range(4)]

    def drain(self) -> list[tuple[int, int]]:
        """What the guest's SCAN does: (slot, notification) of each event."""
        seen = []
        while event := self.read(EVENT):
            self.write(ACKNOWLEDGE, event)
            seen.append((event >> 8, event & 0xFF))
        return seen


def test_what_is_there_from_the_start_is_no_event() -> None:
    wired = Wired()
    assert wired.states() == [0x0F, 0x0F, 0, 0]
    assert (wired.drain(), wired.notified) == ([], 0)


def test_what_is_plugged_is_there_before_the_guest_is_told() -> None:
    wired = Wired()
    wired.controller.plug(2)
    assert wired.states()[2] == 0x0F
    assert wired.notified == 1
    assert wired.drain() == [(2, DEVICE_CHECK)]
    assert wired.drain() == []


def test_events_come_in_order_and_one_that_comes_meanwhile_is_kept() -> None:
    wired = Wired()
    wired.controller.plug(3)
    seen = wired.read(EVENT)
    wired.controller.request_removal(1)
    wired.write(ACKNOWLEDGE, seen)
    assert wired.drain() == [(1, EJECT_REQUEST)]


def test_a_removal_that_was_asked_for_twice_is_one_event() -> None:
    wired = Wired()
    wired.controller.request_removal(1)
    wired.controller.request_removal(1)
    assert wired.drain() == [(1, EJECT_REQUEST)]


def test_a_slot_is_empty_when_the_guest_has_let_go() -> None:
    wired = Wired()
    wired.controller.request_removal(1)
    wired.drain()
    wired.write(EJECT, 1)
    assert (wired.ejected, wired.states()[1]) == ([1], 0)
    wired.write(EJECT, 1)  # what it does not have any more
    assert wired.ejected == [1]


def test_what_stays_cannot_be_ejected() -> None:
    wired = Wired()
    for slot in (0, 2, 3, 4, 255, 256, 0xFFFF_FFFF):
        wired.write(EJECT, slot)
    assert (wired.ejected, wired.states()) == ([], [0x0F, 0x0F, 0, 0])


def test_a_removed_slot_takes_its_event_along() -> None:
    wired = Wired()
    wired.controller.plug(2)
    wired.write(EJECT, 2)
    assert wired.drain() == []


def test_the_guest_says_how_it_went() -> None:
    wired = Wired()
    wired.write(OST_SLOT, 1)
    wired.write(OST_EVENT, 3)
    wired.write(OST_STATUS, 0x84)
    wired.write(OST_SLOT, 1000)  # of what it does not have: nobody is told
    wired.write(OST_STATUS, 0)
    assert wired.reports == [Ost(1, 3, 0x84)]


def test_a_descriptor_says_where_memory_lies() -> None:
    wired = Wired()
    wired.controller.describe(3, 1 << 33, 1 << 27)
    assert wired.read(DESCRIPTOR + 48, 8) == 1 << 33
    assert wired.read(DESCRIPTOR + 56, 8) == 1 << 27


@given(
    st.lists(st.tuples(st.integers(0, 4095), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)))
)
def test_no_write_changes_what_the_machine_has(writes: list[tuple[int, int, int]]) -> None:
    wired = Wired()
    wired.controller.plug(2)
    for offset, width, value in writes:
        wired.controller.write(offset, width, value & ((1 << 8 * width) - 1))
    gone = set(wired.ejected)
    assert gone <= {1, 2}
    assert wired.states() == [0x0F, 0 if 1 in gone else 0x0F, 0 if 2 in gone else 0x0F, 0]
    assert all(report.slot in range(4) for report in wired.reports)
