"""start_info and the memory map, field by field as Xen's start_info.h has them."""

from __future__ import annotations

import struct
from itertools import pairwise

from nemu.arch.x86_64 import layout, pvh
from nemu.arch.x86_64.memory_map import ACPI, RAM, RESERVED, MapEntry, memory_map

MIB = 1 << 20
GIB = 1 << 30


def test_memory_map_of_a_small_machine() -> None:
    assert memory_map([(0, 512 * MIB)]) == [
        MapEntry(0, 0xE0000, RAM),
        MapEntry(0xE0000, 0x20000, ACPI),
        MapEntry(0x100000, 511 * MIB, RAM),
        MapEntry(0x8000_0000, 256 * MIB, RESERVED),
    ]


def test_memory_map_covers_all_ram_but_the_tables_once() -> None:
    entries = memory_map(layout.ram_regions(9 * GIB))
    assert sum(entry.size for entry in entries if entry.kind == RAM) == 9 * GIB - 0x20000
    assert entries[-1] == MapEntry(4 * GIB, 7 * GIB, RAM)
    for first, second in pairwise(entries):
        assert first.gpa + first.size <= second.gpa


def test_boot_structures_lie_in_ram_and_apart() -> None:
    ranges = [
        (layout.GDT, 32),
        (layout.PVH_START_INFO, 4096),
        (layout.ZERO_PAGE, 4096),
        (layout.BOOT_PAGE_TABLES, 6 * 4096),
        (layout.CMDLINE, layout.CMDLINE_MAX),
        (layout.ACPI_TABLES, layout.ACPI_TABLES_END - layout.ACPI_TABLES),
    ]
    for (start, size), (following, _) in pairwise(ranges):
        assert start + size <= following


def test_start_info_with_an_initrd() -> None:
    entries = [MapEntry(0, 0xE0000, RAM), MapEntry(0xE0000, 0x20000, ACPI)]
    info = pvh.start_info(0x6000, cmdline=0x20000, rsdp=0xE0000, initrd=(0x700_0000, 5), memory_map=entries)
    # offsets from the structure's comment in start_info.h
    assert info[0:4] == b"\x78\xc5\x6e\x33"
    assert struct.unpack_from("<III", info, 4) == (1, 0, 1)
    modlist, cmdline, rsdp, memmap = struct.unpack_from("<QQQQ", info, 16)
    assert struct.unpack_from("<II", info, 48) == (2, 0)
    assert (cmdline, rsdp) == (0x20000, 0xE0000)
    assert struct.unpack_from("<QQQQ", info, modlist - 0x6000) == (0x700_0000, 5, 0, 0)
    assert struct.unpack_from("<QQII", info, memmap - 0x6000) == (0, 0xE0000, 1, 0)
    assert struct.unpack_from("<QQII", info, memmap - 0x6000 + 24) == (0xE0000, 0x20000, 3, 0)
    assert len(info) == memmap - 0x6000 + 48


def test_start_info_without_an_initrd_has_no_module() -> None:
    info = pvh.start_info(0x6000, cmdline=0x20000, rsdp=0xE0000, initrd=None, memory_map=[])
    assert struct.unpack_from("<I", info, 12) == (0,)
    assert struct.unpack_from("<Q", info, 16) == (0,)


def test_start_info_of_the_largest_machine_fits_its_page() -> None:
    entries = memory_map(layout.ram_regions(1 << 40))
    info = pvh.start_info(
        layout.PVH_START_INFO, cmdline=0, rsdp=0, initrd=(1 << 20, 1 << 20), memory_map=entries
    )
    assert len(info) <= layout.ZERO_PAGE - layout.PVH_START_INFO
