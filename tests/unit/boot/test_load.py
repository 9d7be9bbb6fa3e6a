"""What ``load`` puts into guest RAM, for each kind of kernel."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable

import pytest

from nemu.arch.x86_64 import layout
from nemu.boot.loader import Entry, check, load
from nemu.errors import ConfigError
from nemu.memory import GuestRam
from unit.boot.kernels import MIB, PACKERS, TEXT_GPA, Elf, bzimage, with_size, xen_note

RSDP = layout.ACPI_TABLES
PVH = Entry("pvh", TEXT_GPA + 0x10, layout.PVH_START_INFO)
RAM_SIZE = 64 * MIB
Image = Callable[..., str]


def start(ram: GuestRam, kernel: str, initrd: str = "", cmdline: str = "quiet") -> Entry:
    check(kernel, initrd, cmdline, ram.ranges[0][1])
    return load(ram, kernel=kernel, initrd=initrd, cmdline=cmdline, rsdp=RSDP)


def assert_loaded(ram: GuestRam, elf: Elf) -> None:
    text = elf.text + (elf.note or b"")
    assert ram.read(elf.text_gpa, len(text)) == text
    assert ram.read(elf.data_gpa, len(elf.data) + elf.bss) == elf.data + bytes(elf.bss)
    assert ram.read(elf.text_gpa - 64, 64) == bytes(64)
    assert ram.read(elf.data_gpa + len(elf.data), 4096) == bytes(4096)


def test_vmlinux_starts_at_its_pvh_note(ram: GuestRam, image: Image) -> None:
    elf = Elf()
    assert start(ram, image(elf.build())) == PVH
    assert_loaded(ram, elf)


@pytest.mark.parametrize("size", [4, 8])
def test_pvh_note_of_either_width(ram: GuestRam, image: Image, size: int) -> None:
    elf = Elf(note=xen_note(TEXT_GPA + 0x20, size))
    assert start(ram, image(elf.build())).rip == TEXT_GPA + 0x20


@pytest.mark.parametrize("packer", PACKERS)
def test_payload_of_each_compression_is_unpacked_to_pvh(ram: GuestRam, image: Image, packer: str) -> None:
    # Larger than every buffer on the way, and hard to compress, so that chunks meet segments anywhere.
    elf = Elf(text=os.urandom(700_001), data=os.urandom(1_300_003))
    assert start(ram, image(bzimage(PACKERS[packer](elf.build())))) == PVH
    assert_loaded(ram, elf)


def test_lz4_payload_of_several_blocks(ram: GuestRam, image: Image) -> None:
    elf = Elf(text=b"text" * (3 * MIB), data=b"data" * (2 * MIB), data_gpa=TEXT_GPA + 16 * MIB)
    assert start(ram, image(bzimage(PACKERS["lz4"](elf.build())))) == PVH
    assert_loaded(ram, elf)


def test_unknown_compression_leaves_the_unpacking_to_the_kernel(ram: GuestRam, image: Image) -> None:
    lzo = b"\x89LZO\0\r\n\x1a\n" + bytes(100)
    entry = start(ram, image(bzimage(with_size(lzo, b""))))
    assert entry == Entry("linux64", TEXT_GPA + 0x200, layout.ZERO_PAGE)
    assert ram.read(TEXT_GPA, 12) == b"decompressor"


def test_missing_library_leaves_the_unpacking_to_the_kernel(
    ram: GuestRam, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert start(ram, image(bzimage(PACKERS["zstd"](Elf().build())))).protocol == "linux64"


@pytest.mark.parametrize(
    "elf",
    [
        pytest.param(Elf(note=None), id="no-notes"),
        pytest.param(Elf(note=xen_note(0)[:20]), id="no-xen-note"),
        pytest.param(Elf(note=xen_note(5 * MIB)), id="entry-not-loaded"),
    ],
)
def test_bzimage_without_pvh_entry_starts_by_linux64(ram: GuestRam, image: Image, elf: Elf) -> None:
    payload = PACKERS["gzip"](elf.build())
    entry = start(ram, image(bzimage(payload)), cmdline="root=/dev/vda")
    assert entry == Entry("linux64", TEXT_GPA + 0x200, layout.ZERO_PAGE)
    assert ram.read(TEXT_GPA + 0x400, len(payload)) == payload
    params = ram.read(layout.ZERO_PAGE, 4096)
    assert params[0x1EF] == 0
    assert params[0x202:0x206] == b"HdrS"
    assert params[0x210] == 0xFF
    assert struct.unpack_from("<Q", params, 0x258) == (TEXT_GPA,)
    assert struct.unpack_from("<I", params, 0x228) == (layout.CMDLINE,)
    assert ram.read(layout.CMDLINE, 14) == b"root=/dev/vda\0"


def test_vmlinux_without_pvh_note_starts_at_its_64_bit_entry(ram: GuestRam, image: Image) -> None:
    entry = start(ram, image(Elf(note=None).build()))
    assert entry == Entry("linux64", TEXT_GPA, layout.ZERO_PAGE)
    assert ram.read(layout.ZERO_PAGE + 0x1FE, 2) == b"\x55\xaa"


def test_start_info_leads_to_everything(ram: GuestRam, image: Image) -> None:
    initrd = os.urandom(5001)
    start(ram, image(Elf().build()), image(initrd, "initrd"), "console=hvc0")
    info = ram.read(layout.PVH_START_INFO, 4096)
    magic, version, _, modules, modlist, cmdline, rsdp, _, _, _ = struct.unpack_from("<IIIIQQQQII", info)
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, RSDP)
    assert ram.read(cmdline, 13) == b"console=hvc0\0"
    gpa, size = struct.unpack("<QQ", ram.read(modlist, 16))
    assert ram.read(gpa, size) == initrd
    assert gpa % 4096 == 0
    assert gpa + 8192 == RAM_SIZE  # as high as it goes


def test_initrd_goes_below_a_kernel_at_the_top_of_memory(ram: GuestRam, image: Image) -> None:
    high = RAM_SIZE - 3 * MIB
    elf = Elf(text_gpa=high, data_gpa=high + 2 * MIB, bss=900_000, entry=high, note=xen_note(high))
    initrd = os.urandom(MIB)
    start(ram, image(elf.build()), image(initrd, "initrd"))
    assert ram.read(high - MIB, MIB) == initrd
    assert ram.read(high, len(elf.text)) == elf.text


@pytest.mark.parametrize(("limit", "expected"), [(0x7FFF_FFFF, 64), (0x2FF_FFFF, 48)])
def test_initrd_obeys_the_kernels_limit(ram: GuestRam, image: Image, limit: int, expected: int) -> None:
    start(ram, image(bzimage(b"", initrd_addr_max=limit)), image(b"i" * 4096, "initrd"))
    gpa, size = struct.unpack("<II", ram.read(layout.ZERO_PAGE + 0x218, 8))
    assert (gpa + size, size) == (expected * MIB, 4096)
    assert ram.read(gpa, size) == b"i" * 4096


def test_initrd_stays_out_of_init_size(ram: GuestRam, image: Image) -> None:
    start(ram, image(bzimage(b"", init_size=48 * MIB)), image(b"i" * MIB, "initrd"))
    assert ram.read(TEXT_GPA - MIB, MIB) == b"i" * MIB


def test_initrd_that_fits_nowhere_is_refused(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(b"", init_size=40 * MIB))
    with pytest.raises(ConfigError, match=r"--initrd .*does not fit beside the kernel into --memory 64M"):
        start(ram, kernel, image(bytes(16 * MIB), "initrd"))


def test_load_frees_its_buffers_and_descriptors(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(PACKERS["lz4"](Elf(text=os.urandom(9 * MIB), data_gpa=30 * MIB).build())))
    start(ram, kernel)
    descriptors = len(os.listdir("/proc/self/fd"))
    grown = []
    for _ in range(3):  # what other threads of this process take meanwhile, they take once
        before = _private_kib()
        start(ram, kernel)
        grown.append(_private_kib() - before)
    assert min(grown) < 2048
    assert len(os.listdir("/proc/self/fd")) == descriptors


def _private_kib() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))


def test_an_archive_lies_behind_the_initrd_where_the_next_one_may_begin(ram: GuestRam, image: Image) -> None:
    kernel, initrd = image(Elf().build()), image(b"initrd..odd", "initrd")
    extra = b"070701 another archive"
    load(ram, kernel=kernel, initrd=initrd, extra=extra, cmdline="", rsdp=RSDP)
    module = struct.unpack("<Q", ram.read(layout.PVH_START_INFO + 16, 8))[0]
    address, size = struct.unpack("<QQ", ram.read(module, 16))
    assert ram.read(address, size) == b"initrd..odd\0" + extra
