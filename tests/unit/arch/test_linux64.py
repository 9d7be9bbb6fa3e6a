"""boot_params, page tables and descriptors of the 64-bit boot protocol."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from nemu.arch.x86_64 import linux64
from nemu.arch.x86_64.memory_map import ACPI, RAM, MapEntry

MAP = [MapEntry(0, 0xE0000, RAM), MapEntry(0xE0000, 0x20000, ACPI), MapEntry(4 << 30, 1 << 40, RAM)]
HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/bootparam.h"), Path("/usr/include/asm/bootparam.h")]


def walk(tables: bytes, base: int, address: int) -> int:
    """Translate as a CPU does, with 2 MiB pages (Intel SDM volume 3, 4.5)."""
    table = base
    for shift in (39, 30, 21):
        entry = int.from_bytes(
            tables[(at := table - base + (address >> shift & 0x1FF) * 8) : at + 8], "little"
        )
        assert entry & 1, f"{address:#x} is not mapped"
        if entry & 0x80:
            return (entry & ~0x1F_FFFF) + (address & 0x1F_FFFF)
        table = entry & ~0xFFF
    raise AssertionError("4 KiB pages are not expected")


@pytest.mark.parametrize("address", [0, 0x7000, 0x20_0000, 0x100_0200, 0x3FFF_FFFF, 0x4000_0000, 0xFFFF_FFFF])
def test_identity_map_covers_4_gib(address: int) -> None:
    tables = linux64.identity_page_tables(0x9000)
    assert len(tables) == 6 * 4096
    assert walk(tables, 0x9000, address) == address


def test_identity_map_ends_at_4_gib() -> None:
    with pytest.raises(AssertionError, match="is not mapped"):
        walk(linux64.identity_page_tables(0x9000), 0x9000, 1 << 32)


def test_descriptors_are_flat() -> None:
    for selector, executable in ((linux64.BOOT_CS, True), (linux64.BOOT_DS, False)):
        (descriptor,) = struct.unpack_from("<Q", linux64.gdt(), selector)
        base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
        limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
        assert (base, limit) == (0, 0xFFFFF)
        assert descriptor >> 47 & 1  # present
        assert bool(descriptor >> 43 & 1) is executable
        assert bool(descriptor >> 53 & 1) is executable  # L: 64-bit code


def test_boot_params_hold_header_and_map() -> None:
    header = bytes(range(1, 123))
    page = linux64.boot_params(header, cmdline=0x20000, rsdp=0xE0000, initrd=(0x700_0000, 77), memory_map=MAP)
    assert len(page) == 4096
    assert page[0x1F1:0x210] == header[:0x1F]
    assert page[0x1F1 + len(header) : 0x290] == bytes(0x290 - 0x1F1 - len(header))
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<II", page, 0x218) == (0x700_0000, 77)
    assert struct.unpack_from("<I", page, 0x228) == (0x20000,)
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert page[0x1E8] == 3
    entries = [MapEntry(*struct.unpack_from("<QQI", page, 0x2D0 + 20 * index)) for index in range(3)]
    assert entries == MAP


def test_a_header_that_is_too_long_stays_in_its_field() -> None:
    page = linux64.boot_params(b"\xff" * 4096, cmdline=0, rsdp=0, initrd=None, memory_map=[])
    assert page[0x28F] == 0xFF
    assert page[0x290:] == bytes(4096 - 0x290)


def test_a_stale_initrd_in_the_header_is_cleared() -> None:
    page = linux64.boot_params(b"\xff" * 0x60, cmdline=0, rsdp=0, initrd=None, memory_map=[])
    assert page[0x218:0x220] == bytes(8)


def test_offsets_equal_the_kernels_header(tmp_path: Path) -> None:
    """The oracle is struct boot_params itself, compiled with offsetof."""
    assert any(path.exists() for path in HEADERS), "no <asm/bootparam.h>: install linux-libc-dev"
    assert shutil.which("gcc"), "no gcc: install gcc"
    fields = {
        "acpi_rsdp_addr": linux64.ACPI_RSDP_ADDR,
        "e820_entries": linux64.E820_ENTRIES,
        "hdr": linux64.SETUP_HEADER,
        "edd_mbr_sig_buffer": linux64.SETUP_HEADER_END,
        "hdr.type_of_loader": linux64.TYPE_OF_LOADER,
        "hdr.ramdisk_image": linux64.RAMDISK_IMAGE,
        "hdr.ramdisk_size": linux64.RAMDISK_SIZE,
        "hdr.cmd_line_ptr": linux64.CMD_LINE_PTR,
        "e820_table": linux64.E820_TABLE,
    }
    constants = ", ".join(f"(int)__builtin_offsetof(struct boot_params, {name})" for name in fields)
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <asm/bootparam.h>\n"
        f"const int offsets[] = {{ {constants},"
        " sizeof(struct boot_params), sizeof(struct boot_e820_entry) };\n"
    )
    listing = subprocess.run(
        ["gcc", "-S", "-o", "-", str(source)], check=True, capture_output=True, text=True
    ).stdout
    found = [int(value) for value in re.findall(r"\.long\s+(\d+)", listing)]
    assert found == [*fields.values(), linux64.BOOT_PARAMS_SIZE, 20]
