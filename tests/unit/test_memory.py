"""Guest RAM: bounds, sharing and giving it back."""

import mmap
import os

import pytest

from nemu.errors import GuestError, HostError
from nemu.memory import GuestRam

PAGE = 4096


@pytest.fixture
def ram():  # type: ignore[no-untyped-def]
    memory = GuestRam([(0, 4 * PAGE), (1 << 32, 2 * PAGE)])
    yield memory
    memory.close()


def test_writes_are_seen_by_views_and_reads(ram: GuestRam) -> None:
    ram.write(0x1000, b"abc")
    assert ram.read(0x1000, 3) == b"abc"
    ram.view(1 << 32, 2)[:] = b"xy"
    assert ram.read(1 << 32, 2) == b"xy"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0, 0),
        (0, -1),
        (-1, 1),
        (4 * PAGE, 1),
        (4 * PAGE - 1, 2),
        ((1 << 32) - 1, 2),
        ((1 << 32) + 2 * PAGE - 1, 2),
        (1 << 64, 1),
        ((1 << 64) - 1, 1 << 64),
    ],
)
def test_what_leaves_ram_is_refused(ram: GuestRam, gpa: int, length: int) -> None:
    with pytest.raises(GuestError):
        ram.view(gpa, length)


def test_regions_lie_one_behind_the_other_in_the_memfd(ram: GuestRam) -> None:
    ram.write(1 << 32, b"high")
    with mmap.mmap(ram.fd, 6 * PAGE) as shared:
        assert shared[4 * PAGE : 4 * PAGE + 4] == b"high"


def test_more_than_the_host_has_is_lazily_backed() -> None:
    memory = GuestRam([(0, 1 << 42)])
    memory.write((1 << 42) - 1, b"!")
    assert os.fstat(memory.fd).st_blocks * 512 <= 2 << 20
    memory.close()


def test_what_cannot_be_mapped_is_a_host_error_and_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="MiB of guest memory"):
        GuestRam([(0, 1 << 60)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_with_a_view_in_flight_keeps_the_view_valid() -> None:
    memory = GuestRam([(0, PAGE)])
    view = memory.view(0, 4)
    memory.close()
    view[:] = b"safe"
    assert bytes(view) == b"safe"
    with pytest.raises(GuestError):
        memory.view(0, 1)


def test_populated_memory_is_taken_and_still_zero() -> None:
    memory = GuestRam([(0, 256 * PAGE)])
    assert os.fstat(memory.fd).st_blocks == 0
    memory.populate(3 * PAGE + 1, 5 * PAGE)
    assert os.fstat(memory.fd).st_blocks * 512 == 6 * PAGE
    assert memory.read(0, 256 * PAGE) == bytes(256 * PAGE)
    memory.populate(1 << 40, PAGE)  # no RAM there: the write itself will tell
    memory.close()
