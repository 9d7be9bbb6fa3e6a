"""Guest RAM: bounds, sharing and giving it back."""

import mmap
import os
from pathlib import Path

import pytest

from nemu.errors import GuestError, HostError
from nemu.memory import DeviceMemory, GuestRam, map_image

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


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"image".ljust(2 * PAGE, b"\xaa"))
    return path


def test_an_image_is_guest_memory_and_what_is_written_is_in_the_file(ram: GuestRam, image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    ram.add(1 << 33, map_image(fd, 2 * PAGE, readonly=False), fd)
    assert ram.read(1 << 33, 5) == b"image"
    ram.write((1 << 33) + PAGE, b"new")
    assert image.read_bytes()[PAGE : PAGE + 3] == b"new"
    os.close(fd)


def test_a_readonly_image_is_read_and_never_written(ram: GuestRam, image: Path) -> None:
    before = image.read_bytes()
    fd = os.open(image, os.O_RDONLY)
    region = ram.add(1 << 33, map_image(fd, 2 * PAGE, readonly=True), fd, readonly=True)
    view = ram.readable(1 << 33, 2 * PAGE)
    assert (bytes(view), view.readonly) == (before, True)
    with pytest.raises(GuestError):
        ram.view(1 << 33, 1)
    # Nor by the host kernel on our behalf, which knows the address: vhost.
    with open("/dev/zero", "rb") as zero, pytest.raises(OSError, match="Bad address"):
        os.preadv(zero.fileno(), [memoryview(region.mapping)], 0)
    assert image.read_bytes() == before
    image.write_bytes(b"other")  # shared with whoever else maps the file, not a copy
    assert bytes(view[:5]) == b"other"
    os.close(fd)


def test_discarded_ram_is_given_back_and_reads_as_zeroes() -> None:
    memory = GuestRam([(0, 64 * PAGE), (1 << 32, 64 * PAGE)])
    for gpa in (0, 1 << 32):
        memory.write(gpa, b"x" * 64 * PAGE)
    memory.discard((1 << 32) + PAGE, 10 * PAGE)
    assert os.fstat(memory.fd).st_blocks * 512 == 118 * PAGE
    assert memory.read(1 << 32, 12 * PAGE) == b"x" * PAGE + bytes(10 * PAGE) + b"x" * PAGE
    assert memory.read(0, 64 * PAGE) == b"x" * 64 * PAGE
    memory.close()


def test_a_discard_over_two_regions_that_touch_is_done_in_both() -> None:
    memory = GuestRam([(0, 2 * PAGE), (2 * PAGE, 2 * PAGE)])
    memory.write(0, b"x" * 2 * PAGE)
    memory.write(2 * PAGE, b"x" * 2 * PAGE)
    memory.discard(PAGE, 2 * PAGE)
    assert os.fstat(memory.fd).st_blocks * 512 == 2 * PAGE
    memory.close()


@pytest.mark.parametrize("gpa", [4 * PAGE, 1 << 40, (1 << 32) + 2 * PAGE])
def test_a_discard_outside_is_refused(ram: GuestRam, gpa: int) -> None:
    with pytest.raises(GuestError):
        ram.discard(gpa, PAGE)


def test_a_discard_never_touches_a_file(ram: GuestRam, image: Path) -> None:
    before = image.read_bytes()
    fd = os.open(image, os.O_RDWR)
    ram.add(1 << 33, map_image(fd, 2 * PAGE, readonly=False), fd)
    ram.discard(1 << 33, 2 * PAGE)
    assert image.read_bytes() == before
    os.close(fd)


def test_a_view_knows_its_address(ram: GuestRam) -> None:
    assert ram.gpa(ram.view((1 << 32) + 77, 5)) == (1 << 32) + 77
    with pytest.raises(ValueError):
        ram.gpa(memoryview(bytearray(5)))


def test_device_memory_is_aligned_apart_and_bounded() -> None:
    gib = DeviceMemory.ALIGNMENT
    addresses = DeviceMemory(4 * gib, 8 * gib)
    assert [addresses.allocate(size) for size in (1, gib, 1)] == [4 * gib, 5 * gib, 6 * gib]
    with pytest.raises(ValueError, match="needs 2048 MiB of guest addresses, 1024 MiB are left"):
        addresses.allocate(2 * gib)
    assert addresses.allocate(gib) == 7 * gib
    with pytest.raises(ValueError, match="0 MiB are left"):
        addresses.allocate(1)


def test_device_memory_that_was_freed_is_used_again() -> None:
    gib = DeviceMemory.ALIGNMENT
    addresses = DeviceMemory(4 * gib, 8 * gib)
    for _ in range(4):
        addresses.allocate(gib)
    addresses.free(5 * gib)
    addresses.free(6 * gib)
    assert addresses.allocate(2 * gib) == 5 * gib
