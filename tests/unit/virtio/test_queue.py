"""The device side of a split virtqueue against a driver written from the specification."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import RAM_SIZE, Driver
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.queue import Queue

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 8


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def driver(request: pytest.FixtureRequest, ram: GuestRam) -> Driver:
    return Driver(ram, SIZE, event_idx=request.param)


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_chain_gives_views_of_guest_ram_in_order(driver: Driver, indirect: bool) -> None:
    queue = driver.queue()
    driver.add([b"abc", b"de"], [4, 2], indirect=indirect)
    chain = queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"abc", b"de"]
    assert [len(view) for view in chain.writable] == [4, 2]
    chain.writable[0][:] = b"wxyz"
    chain.writable[1][:] = b"12"
    queue.push(chain.head, 6)
    queue.flush()
    (used,) = driver.collect()
    assert (used.written, used.data) == (6, b"wxyz12")


def test_an_indirect_descriptor_may_end_a_direct_chain(ram: GuestRam) -> None:
    driver = Driver(ram, SIZE)
    table = driver.place(struct.pack("<QIHH", 0x90000, 7, WRITE, 0), align=16)
    driver.write_descriptor(2, 0x80000, 5, NEXT, 3)
    driver.write_descriptor(3, table, 16, INDIRECT | WRITE)  # WRITE is to be ignored there (2.7.5.3.2)
    driver.make_available(2)
    chain = driver.queue().pop()
    assert chain is not None
    assert ([len(v) for v in chain.readable], [len(v) for v in chain.writable]) == ([5], [7])


def test_nothing_available_is_no_chain(driver: Driver) -> None:
    assert driver.queue().pop() is None


def test_indices_wrap_at_two_to_the_sixteenth(driver: Driver) -> None:
    queue = driver.queue()
    for round_number in range(0x10000 // SIZE + 2):
        for _ in range(SIZE):
            driver.add([b"x"])
        for _ in range(SIZE):
            chain = queue.pop()
            assert chain is not None
            queue.push(chain.head, 0)
        queue.flush()
        assert len(driver.collect()) == SIZE, round_number


def test_pushed_chains_become_visible_together_at_flush(driver: Driver) -> None:
    queue = driver.queue()
    driver.add([b"a"])
    driver.add([b"b"])
    for _ in range(2):
        chain = queue.pop()
        assert chain is not None
        queue.push(chain.head, 0)
    assert driver.collect() == []
    queue.flush()
    assert len(driver.collect()) == 2
    assert driver.interrupts == 1


def echo(driver: Driver, queue: Queue) -> None:
    driver.add([b"x"])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain.head, 0)
    queue.flush()
    driver.collect()


def test_no_interrupt_that_the_driver_does_not_want(driver: Driver) -> None:
    queue = driver.queue()
    driver.suppress_interrupts()
    echo(driver, queue)
    assert driver.interrupts == 0


def test_flush_without_a_push_does_not_interrupt(driver: Driver) -> None:
    queue = driver.queue()
    queue.flush()
    assert driver.interrupts == 0


def test_event_index_asks_for_one_interrupt_at_its_place(ram: GuestRam) -> None:
    driver = Driver(ram, SIZE, event_idx=True)
    queue = driver.queue()
    driver.set_used_event(2)  # interrupt once used.idx goes past 2, that is with the third buffer
    seen = []
    for _ in range(5):
        echo(driver, queue)
        seen.append(driver.interrupts)
    assert seen == [0, 0, 1, 1, 1]


def test_notifications_are_suppressed_and_wanted_again(driver: Driver) -> None:
    queue = driver.queue()
    driver.add([b"x"])
    assert driver.wants_kick, "a new queue wants its first notification"
    queue.disable_notifications()
    assert queue.pop() is not None
    driver.add([b"y"])
    assert not driver.wants_kick
    assert queue.pop() is not None
    assert queue.enable_notifications() is False
    driver.add([b"z"])
    assert driver.wants_kick


def test_a_buffer_that_came_during_suppression_is_reported(driver: Driver) -> None:
    queue = driver.queue()
    queue.disable_notifications()
    assert queue.pop() is None
    driver.add([b"late"])
    assert queue.enable_notifications() is True


@pytest.mark.parametrize("size", [0, 3, 6, 65536, -8])
def test_a_queue_size_must_be_a_power_of_two(ram: GuestRam, size: int) -> None:
    with pytest.raises(GuestError, match="power of two"):
        Queue(ram, size=size, desc=0, avail=0, used=0, event_idx=False, interrupt=lambda: None)


def test_a_queue_is_not_larger_than_the_device_offers(ram: GuestRam) -> None:
    rings = {"desc": 0, "avail": 0x1000, "used": 0x2000}
    Queue(ram, size=64, **rings, event_idx=False, interrupt=lambda: None, max_size=64)
    with pytest.raises(GuestError, match="at most 64"):
        Queue(ram, size=128, **rings, event_idx=False, interrupt=lambda: None, max_size=64)


@pytest.mark.parametrize(("ring", "address"), [("desc", 8), ("avail", 1), ("used", 2)])
def test_misaligned_rings_are_refused(ram: GuestRam, ring: str, address: int) -> None:
    rings = {"desc": 0, "avail": 0x1000, "used": 0x2000} | {ring: address}
    with pytest.raises(GuestError, match="is not aligned"):
        Queue(ram, size=SIZE, **rings, event_idx=False, interrupt=lambda: None)


@pytest.mark.parametrize("ring", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [RAM_SIZE, RAM_SIZE - 16, (1 << 64) - 16, 1 << 63])
def test_rings_outside_ram_are_refused(ram: GuestRam, ring: str, address: int) -> None:
    rings = {"desc": 0, "avail": 0x1000, "used": 0x2000} | {ring: address}
    with pytest.raises(GuestError, match="no RAM"):
        Queue(ram, size=SIZE, **rings, event_idx=True, interrupt=lambda: None)


def refused(driver: Driver, reason: str, head: int = 0) -> None:
    driver.make_available(head)
    with pytest.raises(GuestError, match=reason):
        driver.queue().pop()


def test_an_available_index_that_jumps_is_refused(driver: Driver) -> None:
    driver.set_avail_idx(SIZE + 1)
    with pytest.raises(GuestError, match="9 buffers available in a queue of 8"):
        driver.queue().pop()


def test_an_available_index_that_goes_back_is_refused(driver: Driver) -> None:
    driver.set_avail_idx(-1)
    with pytest.raises(GuestError, match="buffers available"):
        driver.queue().pop()


def test_the_same_head_again_and_again_cannot_pile_up(driver: Driver) -> None:
    queue = driver.queue()
    driver.write_descriptor(0, 0x80000, 1, 0)
    for _ in range(SIZE):
        driver.make_available(0)
        assert queue.pop() is not None
    driver.make_available(0)
    with pytest.raises(GuestError, match="buffers available"):
        queue.pop()
    assert queue.in_flight == SIZE


def test_a_head_outside_the_table_is_refused(driver: Driver) -> None:
    refused(driver, "descriptor 8 in a table of 8", head=SIZE)


def test_a_successor_outside_the_table_is_refused(driver: Driver) -> None:
    driver.write_descriptor(0, 0x80000, 1, NEXT, 0xFFFF)
    refused(driver, "descriptor 65535")


def test_a_loop_of_descriptors_is_refused(driver: Driver) -> None:
    driver.write_descriptor(0, 0x80000, 1, NEXT, 1)
    driver.write_descriptor(1, 0x80000, 1, NEXT, 0)
    refused(driver, "more than 8 descriptors")


def test_the_longest_chain_is_the_queue_size(driver: Driver) -> None:
    for index in range(SIZE):
        driver.write_descriptor(index, 0x80000, 1, NEXT if index + 1 < SIZE else 0, index + 1)
    driver.make_available(0)
    chain = driver.queue().pop()
    assert chain is not None
    assert len(chain.readable) == SIZE


def test_direct_and_indirect_descriptors_count_together(driver: Driver) -> None:
    table = driver.place(
        b"".join(struct.pack("<QIHH", 0x80000, 1, NEXT, n + 1) for n in range(SIZE)), align=16
    )
    driver.write_descriptor(0, 0x80000, 1, NEXT, 1)
    driver.write_descriptor(1, table, 16 * SIZE, INDIRECT)
    refused(driver, "more than 8 descriptors")


def test_an_indirect_table_in_an_indirect_table_is_refused(driver: Driver) -> None:
    table = driver.place(struct.pack("<QIHH", 0x80000, 16, INDIRECT, 0), align=16)
    driver.write_descriptor(0, table, 16, INDIRECT)
    refused(driver, "in an indirect table")


def test_an_indirect_descriptor_with_a_successor_is_refused(driver: Driver) -> None:
    driver.write_descriptor(0, 0x80000, 16, INDIRECT | NEXT, 1)
    refused(driver, "with a successor")


@pytest.mark.parametrize("length", [0, 8, 24, 16 * SIZE + 16, 0xFFFF_FFF0])
def test_an_indirect_table_of_a_wrong_length_is_refused(driver: Driver, length: int) -> None:
    driver.write_descriptor(0, 0x80000, length, INDIRECT)
    refused(driver, "indirect table of")


def test_an_indirect_table_outside_ram_is_refused(driver: Driver) -> None:
    driver.write_descriptor(0, RAM_SIZE - 16, 32, INDIRECT)
    refused(driver, "no RAM")


def test_a_readable_descriptor_behind_a_writable_one_is_refused(driver: Driver) -> None:
    driver.write_descriptor(0, 0x80000, 1, NEXT | WRITE, 1)
    driver.write_descriptor(1, 0x80000, 1, 0)
    refused(driver, "readable behind a writable")


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0x80000, 0), (RAM_SIZE - 1, 2), (RAM_SIZE, 1), ((1 << 64) - 1, 2), ((1 << 64) - 1, 0xFFFF_FFFF)],
)
def test_buffers_outside_ram_or_empty_are_refused(driver: Driver, gpa: int, length: int) -> None:
    driver.write_descriptor(0, gpa, length, WRITE)
    refused(driver, "no RAM")


def test_a_chain_longer_than_a_used_length_can_say_is_refused() -> None:
    size = 2 << 30
    ram = GuestRam([(0, size)])  # lazily backed: no byte of it is touched
    driver = Driver(ram, SIZE)
    for index in range(2):
        driver.write_descriptor(index, 0, size, WRITE | NEXT, index + 1)
    refused(driver, "more than 4294967295 bytes")
    ram.close()


def write_table(driver: Driver, rows: list[tuple[int, int, int, int]]) -> None:
    """An indirect table in descriptor 0, made available."""
    raw = b"".join(struct.pack("<QIHH", *row) for row in rows)
    driver.write_descriptor(0, driver.place(raw, align=16), len(raw), INDIRECT)
    driver.make_available(0)


BIG = 32


@pytest.mark.parametrize("readable", [0, 1, 5, BIG - 1])
def test_a_large_table_in_order_is_taken_as_it_is(ram: GuestRam, readable: int) -> None:
    driver = Driver(ram, BIG)
    rows = [
        (
            0x80000 + 0x100 * n,
            n + 1,
            (WRITE if n >= readable else 0) | (NEXT if n + 1 < BIG else 0),
            (n + 1) % BIG,
        )
        for n in range(BIG)
    ]
    write_table(driver, rows)
    for n in range(BIG):
        ram.write(0x80000 + 0x100 * n, bytes([n + 1]) * (n + 1))
    chain = driver.queue().pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [bytes([n + 1]) * (n + 1) for n in range(readable)]
    assert [bytes(view) for view in chain.writable] == [
        bytes([n + 1]) * (n + 1) for n in range(readable, BIG)
    ]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(8, BIG), readable=st.integers(0, BIG))
def test_a_table_is_taken_as_a_whole_just_as_descriptor_by_descriptor(
    ram: GuestRam, monkeypatch: pytest.MonkeyPatch, *, data: st.DataObject, count: int, readable: int
) -> None:
    """A table as drivers write it, with a few fields spoilt, gives the same chain or the same refusal."""
    rows = [
        [0x80000 + 0x100 * n, n + 1, (WRITE if n >= readable else 0) | (NEXT if n + 1 < count else 0), n + 1]
        for n in range(count)
    ]
    for _ in range(data.draw(st.integers(0, 2))):
        row = rows[data.draw(st.integers(0, count - 1))]
        field = data.draw(st.integers(0, 3))
        row[field] = data.draw(
            (
                st.sampled_from([0, RAM_SIZE - 1, RAM_SIZE, (1 << 64) - 1]),
                st.sampled_from([0, 1, 0x1000, 0xFFFF_FFFF]),
                st.integers(0, 7),
                st.integers(0, count + 1),
            )[field]
        )
    outcomes = []
    for least in (8, BIG + 1):
        monkeypatch.setattr("nemu.virtio.queue._MANY", least)
        driver = Driver(ram, BIG)
        ram.write(driver.desc, bytes(0x1000))
        write_table(driver, [(row[0], row[1], row[2], row[3]) for row in rows])
        outcomes.append(_outcome(driver, ram))
    assert outcomes[0] == outcomes[1]


def _outcome(driver: Driver, ram: GuestRam) -> object:
    """Where the buffers of the next chain lie, or "refused"."""
    try:
        chain = driver.queue().pop()
    except GuestError:
        return "refused"
    assert chain is not None
    return [[(address_of(view), len(view)) for view in views] for views in chain[1:]]


def address_of(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


HOSTILE_RAM = 0x8000


class RecordingRam:
    """Guest RAM of another make than GuestRam: it counts the views that it gave."""

    def __init__(self, content: bytes) -> None:
        self._bytes = bytearray(HOSTILE_RAM)
        self._bytes[: len(content)] = content
        self.views = 0

    def view(self, gpa: int, length: int) -> memoryview:
        self.views += 1
        if length < 1 or gpa < 0 or gpa + length > HOSTILE_RAM:
            raise GuestError("outside")
        return memoryview(self._bytes)[gpa : gpa + length]

    readable = view

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self.view(gpa, len(data))[:] = data


# Likely values first, so that many chains get past the first check; any value at all as well.
addresses = st.one_of(
    st.integers(0, HOSTILE_RAM),
    st.sampled_from([0x1000, 0x1010, HOSTILE_RAM - 16]),
    st.integers(0, 2**64 - 1),
)
lengths = st.one_of(st.integers(0, 64), st.sampled_from([16, 32, 64, 128]), st.integers(0, 2**32 - 1))
descriptors = st.tuples(
    addresses,
    lengths,
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
)
tables = st.lists(descriptors, min_size=SIZE, max_size=SIZE)


@settings(max_examples=400, deadline=None)
@given(
    table=tables,
    inner=tables,
    heads=st.lists(st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)), min_size=SIZE, max_size=SIZE),
    jumps=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 0xFFFF)), max_size=12),
    event_idx=st.booleans(),
    overlap=st.booleans(),
)
def test_a_hostile_driver_gets_a_guest_error_and_nothing_else(
    *,
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    heads: list[int],
    jumps: list[int],
    event_idx: bool,
    overlap: bool,
) -> None:
    raw = b"".join(struct.pack("<QIHH", *entry) for entry in table)
    memory = RecordingRam(raw)
    memory.write(0x1000, b"".join(struct.pack("<QIHH", *entry) for entry in inner))
    avail, used = 0x200, (0x200 if overlap else 0x400)
    memory.write(avail + 4, struct.pack(f"<{SIZE}H", *heads))
    interrupts: list[None] = []
    queue = Queue(
        memory,
        size=SIZE,
        desc=0,
        avail=avail,
        used=used,
        event_idx=event_idx,
        interrupt=lambda: interrupts.append(None),
    )
    idx = 0
    for jump in jumps:
        idx += jump
        memory.write(avail + 2, struct.pack("<H", idx & 0xFFFF))
        memory.views = 0
        try:
            chain = queue.pop()
        except GuestError:
            return
        assert memory.views <= SIZE + 1
        assert queue.in_flight <= SIZE
        if chain is None:
            continue
        assert len(chain.readable) + len(chain.writable) <= SIZE
        assert all(len(view) for view in chain.readable + chain.writable)
        for view in chain.writable:
            view[0] = 0xA5  # may change the rings themselves: still nothing but GuestError follows
        queue.push(chain.head, 1)
        queue.flush()
        queue.enable_notifications()
    assert len(interrupts) <= len(jumps)
