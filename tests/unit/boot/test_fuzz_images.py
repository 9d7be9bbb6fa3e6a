"""Mutated images: whatever a kernel file holds, ``load`` succeeds or raises ConfigError, and stays in bounds.

GuestRam refuses every access outside RAM with GuestError, which these tests would see as a failure.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemu.arch.x86_64 import layout
from nemu.boot.loader import Entry, check, load
from nemu.errors import ConfigError
from nemu.memory import GuestRam
from unit.boot.kernels import MIB, PACKERS, Elf, bzimage

RAM_SIZE = 64 * MIB
LONGEST = 5.0  # seconds for one image; typical is a few milliseconds

ELF = Elf(text=random.Random(1).randbytes(30_000), data=bytes(20_000)).build()
IMAGES = {"elf": ELF} | {name: bzimage(packer(ELF)) for name, packer in PACKERS.items()}

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Change = tuple[int, int, int]  # place, width, value
widths = st.sampled_from([1, 2, 4, 8])
mutations = st.lists(
    st.tuples(st.integers(0, 1 << 17), widths, st.integers(0, (1 << 64) - 1)), min_size=1, max_size=6
)
worst = st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 63) - 1, (1 << 64) - 1])


def outcome(ram: GuestRam, path: str) -> Entry | ConfigError:
    try:
        return load(ram, kernel=path, initrd="", cmdline="quiet", rsdp=layout.ACPI_TABLES)
    except ConfigError as error:
        return error


def refused_early(path: str) -> bool:
    try:
        check(path, "", "quiet", RAM_SIZE)
    except ConfigError:
        return True
    return False


def attempt(ram: GuestRam, directory: Path, data: bytes) -> None:
    path = directory / "fuzzed"
    path.write_bytes(data)
    started = time.monotonic()
    result = outcome(ram, str(path))
    assert time.monotonic() - started < LONGEST
    if isinstance(result, Entry):
        assert layout.KERNEL_START <= result.rip < RAM_SIZE
        assert not refused_early(str(path))
    else:
        assert "\n" not in str(result)
    assert ram.read(0, layout.GDT) == bytes(layout.GDT)
    assert ram.read(layout.ACPI_TABLES, 0x20000) == bytes(0x20000)  # the tables' room


def mutate(data: bytes, changes: list[Change]) -> bytes:
    changed = bytearray(data)
    for place, width, value in changes:
        at = place % len(changed)
        piece = value.to_bytes(8, "little")[:width]
        changed[at : at + width] = piece[: len(changed) - at]
    return bytes(changed)


@pytest.mark.parametrize("name", IMAGES)
@relaxed
@given(changes=mutations)
def test_bytes_anywhere(ram: GuestRam, tmp_path: Path, name: str, changes: list[Change]) -> None:
    attempt(ram, tmp_path, mutate(IMAGES[name], changes))


@pytest.mark.parametrize("name", IMAGES)
@relaxed
@given(change=st.tuples(st.integers(0, 0x270), widths, worst))
def test_worst_values_in_headers(ram: GuestRam, tmp_path: Path, name: str, change: Change) -> None:
    attempt(ram, tmp_path, mutate(IMAGES[name], [change]))


@pytest.mark.parametrize("packer", PACKERS)
@relaxed
@given(change=st.tuples(st.integers(0, 64 + 3 * 56 - 1), widths, worst))
def test_worst_values_in_a_packed_elf(ram: GuestRam, tmp_path: Path, packer: str, change: Change) -> None:
    attempt(ram, tmp_path, bzimage(PACKERS[packer](mutate(ELF, [change]))))


@pytest.mark.parametrize("name", IMAGES)
@relaxed
@given(data=st.data())
def test_truncation_anywhere(ram: GuestRam, tmp_path: Path, name: str, data: st.DataObject) -> None:
    image = IMAGES[name]
    attempt(ram, tmp_path, image[: data.draw(st.integers(1, len(image) - 1))])


@relaxed
@given(magic=st.sampled_from([b"\x7fELF\x02\x01\x01", b"", b"MZ"]), rest=st.binary(max_size=2000))
def test_noise(ram: GuestRam, tmp_path: Path, magic: bytes, rest: bytes) -> None:
    attempt(ram, tmp_path, magic + rest + b"\0")


def test_a_kernel_that_shrinks_while_it_is_read(ram: GuestRam, tmp_path: Path) -> None:
    """The file is cut after its header was believed: an error, never a SIGBUS or a hang."""
    path = tmp_path / "shrinking"
    path.write_bytes(Elf(text=bytes(8 * MIB), data_gpa=40 * MIB).build())

    class Cutting(GuestRam):
        def view(self, gpa: int, length: int) -> memoryview:
            os.truncate(path, 5000)
            return super().view(gpa, length)

    with pytest.raises(ConfigError, match="is truncated"):
        load(Cutting(ram.ranges), kernel=str(path), initrd="", cmdline="", rsdp=layout.ACPI_TABLES)
