"""The interval map, with a backing as strict as KVM."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.bus import FakeBacking, FakeHandler
from fakes.pages import FakePages
from nemu.bus.address_space import MAX_COUNTED, AddressSpace
from nemu.interfaces import Doorbell, Window

RAM = (0, 0x10000)


def window(name: str, size: int = 0x1000, *, pages: bool = False, bells: int = 0) -> Window:
    doorbells = tuple(Doorbell(0x800 + 4 * index, index) for index in range(bells))
    return Window(name, size, FakeHandler(0x1122_3344_5566_7788), FakePages() if pages else None, doorbells)


def handler(one: Window) -> FakeHandler:
    assert isinstance(one.handler, FakeHandler)
    return one.handler


def test_an_access_reaches_its_window_with_offset_and_width() -> None:
    space, low, high = AddressSpace(), window("low"), window("high")
    space.place(high, 0x21000)
    space.place(low, 0x20000)
    space.write(0x20FFC, 4, 7)
    assert space.read(0x21008, 8) == 0x1122_3344_5566_7788
    assert space.read(0x21001, 1) == 0x88
    assert handler(low).calls == [("write", 0xFFC, 4, 7)]
    assert handler(high).calls == [("read", 8, 8), ("read", 1, 1)]
    assert space.unknown == 0


def test_where_nothing_answers_reads_are_all_ones_and_counted() -> None:
    space, one = AddressSpace(), window("one")
    space.place(one, 0x20000)
    assert [space.read(0x1000, width) for width in (1, 2, 4, 8)] == [0xFF, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1]
    assert space.read(0x21000, 3) == 0xFF_FFFF
    space.write((1 << 64) - 1, 1, 0)
    assert space.unknown == 6
    assert handler(one).calls == []


def test_an_access_across_the_edge_of_a_window_reaches_neither_side() -> None:
    space, one, two = AddressSpace(), window("one"), window("two")
    space.place(one, 0x20000)
    space.place(two, 0x21000)
    assert space.read(0x20FFE, 4) == 0xFFFF_FFFF
    space.write(0x1FFFF, 2, 0)
    assert space.unknown == 2
    assert handler(one).calls == handler(two).calls == []


def test_a_window_over_another_waits_until_that_leaves() -> None:
    backing = FakeBacking()
    space = AddressSpace(backing)
    first, second = window("first", pages=True, bells=2), window("second", pages=True, bells=2)
    space.place(first, 0x20000)
    space.place(second, 0x20000)
    assert space.find(0x20000, 4) == (first, 0)
    space.withdraw(first)
    assert space.find(0x20000, 4) == (second, 0)
    assert backing.slots == {0x20000: second.pages}
    assert sorted(backing.doorbells) == [0x20800, 0x20804]


def test_a_waiting_window_that_is_withdrawn_never_comes_back() -> None:
    space, first, second = AddressSpace(), window("first"), window("second")
    space.place(first, 0x20000)
    space.place(second, 0x20800)
    space.withdraw(second)
    space.withdraw(first)
    assert space.find(0x20800, 1) is None


def test_two_windows_can_be_swapped_while_both_are_decoded() -> None:
    space, first, second = AddressSpace(FakeBacking()), window("first"), window("second")
    space.place(first, 0x20000)
    space.place(second, 0x30000)
    space.place(first, 0x30000)
    space.place(second, 0x20000)
    assert space.find(0x30000, 1) == (first, 0)
    assert space.find(0x20000, 1) == (second, 0)


def test_nothing_is_decoded_over_reserved_ranges_or_past_the_end() -> None:
    space = AddressSpace(None, (RAM, (0xFEE0_0000, 0x1000)), bits=36)
    one = window("one", 0x4000)
    for gpa in (0, 0xF000, 0xFEDF_D000, 0xFEE0_0000, (1 << 36) - 0x3000, 1 << 36, (1 << 64) - 0x4000):
        space.place(one, gpa)
        assert space.find(gpa, 1) is None, hex(gpa)
    for gpa in (0x10000, 0xFEDF_C000, 0xFEE0_1000, (1 << 36) - 0x4000):
        space.place(one, gpa)
        assert space.find(gpa, 1) == (one, 0), hex(gpa)


def test_withdrawing_what_is_not_placed_does_nothing() -> None:
    space, one = AddressSpace(FakeBacking()), window("one", pages=True)
    space.withdraw(one)
    space.place(one, 0x20000)
    space.withdraw(one)
    space.withdraw(one)
    assert space.find(0x20000, 1) is None


def test_what_is_counted_is_bounded_whatever_the_guest_touches() -> None:
    space, one = AddressSpace(), window("one")
    space.place(one, 0x1000_0000)
    for address in range(2 * MAX_COUNTED):
        space.read(address, 1)
    assert (len(space.counts), space.unknown) == (MAX_COUNTED, 2 * MAX_COUNTED)
    space.read(0, 1)  # one that is known already is still counted
    assert space.counts["", 0, False] == 2


def test_counts_are_named_by_register_and_sorted() -> None:
    space, one, gone = AddressSpace(), window("one"), window("gone")
    space.place(one, 0x20000)
    space.place(gone, 0x30000)
    space.write(0x20004, 4, 1)
    for _ in range(3):
        space.read(0x20004, 4)
    space.read(0x30010, 1)
    space.withdraw(gone)
    space.read(0x40000, 1)
    space.read(0x40000, 1)
    assert list(space.counts_by_register().items()) == [
        ("one reg0x4 read", 3),
        ("unknown 0x40000 read", 2),
        ("one reg0x4 write", 1),
        ("gone reg0x10 read", 1),
    ]


PLACES = st.integers(0, 12).map(lambda page: page * 0x1000)


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | PLACES), max_size=40))
def test_any_moves_leave_the_backing_as_the_map_says(moves: list[tuple[int, int | None]]) -> None:
    backing = FakeBacking()
    space = AddressSpace(backing, reserved=((0x5000, 0x1000),))
    windows = [window(f"w{index}", 0x1000 << index % 3, pages=True, bells=1) for index in range(4)]
    wanted: dict[Window, int] = {}
    for index, gpa in moves:
        wanted.pop(windows[index], None)
        if gpa is None:
            space.withdraw(windows[index])
        else:
            space.place(windows[index], gpa)
            wanted[windows[index]] = gpa
        seen = {found[0] for page in range(16) if (found := space.find(page * 0x1000, 1))}
        assert space.find(0x5000, 1) is None
        assert backing.slots == {wanted[one]: one.pages for one in seen}
        assert set(backing.doorbells) == {wanted[one] + 0x800 for one in seen}
        # What waits has a reason to.
        for one, start in wanted.items():
            blocked = any(
                start < other_end and other_start < start + one.size
                for other_start, other_end in [
                    (0x5000, 0x6000),
                    *((wanted[other], wanted[other] + other.size) for other in seen if other is not one),
                ]
            )
            assert (one in seen) is not blocked
