"""What the 64-bit boot protocol of Linux wants in memory (Documentation/arch/x86/boot.rst, zero-page.rst).

The guest starts in long mode at the kernel's 64-bit entry with an identity map, CS and DS
of the GDT below, interrupts off, and RSI pointing at ``boot_params``, the "zero page".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nemu.arch.x86_64.memory_map import MapEntry

# The selectors that the protocol demands (boot.rst, "64-bit Boot Protocol").
BOOT_CS = 0x10
BOOT_DS = 0x18
# Null, unused, flat 64-bit code, flat data; marked as accessed so that no CPU writes to them.
GDT_ENTRIES = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

# struct boot_params (zero-page.rst)
BOOT_PARAMS_SIZE = 4096
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
SETUP_HEADER = 0x1F1
SETUP_HEADER_END = 0x290  # where the next field of boot_params starts
TYPE_OF_LOADER = 0x210
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
E820_TABLE = 0x2D0

_LOADER_UNDEFINED = 0xFF  # a loader without an assigned number
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_VERSION = 0x206

_E820_ENTRY = struct.Struct("<QQI")
_PRESENT_WRITABLE = 0x3
_LARGE_PAGE = 0x80
_IDENTITY_GIB = 4


def gdt() -> bytes:
    """The global descriptor table for layout.GDT."""
    return struct.pack(f"<{len(GDT_ENTRIES)}Q", *GDT_ENTRIES)


def identity_page_tables(gpa: int) -> bytes:
    """Page tables for ``gpa`` that map the first 4 GiB onto themselves in 2 MiB pages.

    One PML4, one PDPT and four page directories: six pages; CR3 is ``gpa``.
    """
    pdpt = gpa + 4096
    directories = [gpa + 4096 * (2 + index) for index in range(_IDENTITY_GIB)]
    pml4_page = struct.pack("<Q", pdpt | _PRESENT_WRITABLE).ljust(4096, b"\0")
    pdpt_page = b"".join(struct.pack("<Q", page | _PRESENT_WRITABLE) for page in directories)
    leaves = [page << 21 | _LARGE_PAGE | _PRESENT_WRITABLE for page in range(512 * _IDENTITY_GIB)]
    return pml4_page + pdpt_page.ljust(4096, b"\0") + struct.pack(f"<{len(leaves)}Q", *leaves)


def vmlinux_setup_header() -> bytes:
    """The setup header for a bare vmlinux, which brings none: protocol 2.12, no limits of its own."""
    header = bytearray(SETUP_HEADER_END - SETUP_HEADER)
    struct.pack_into("<H", header, _BOOT_FLAG - SETUP_HEADER, 0xAA55)
    struct.pack_into("<4sH", header, _HEADER_MAGIC - SETUP_HEADER, b"HdrS", 0x020C)
    return bytes(header)


def boot_params(
    setup_header: bytes,
    *,
    cmdline: int,
    rsdp: int,
    initrd: tuple[int, int] | None,
    memory_map: Sequence[MapEntry],
) -> bytes:
    """``struct boot_params`` around the kernel's own ``setup_header`` (the image's bytes from 0x1F1 on).

    ``cmdline`` and ``rsdp`` are addresses below 4 GiB, ``initrd`` is (gpa, size) below 4 GiB.
    """
    page = bytearray(BOOT_PARAMS_SIZE)
    header = setup_header[: SETUP_HEADER_END - SETUP_HEADER]
    page[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    page[TYPE_OF_LOADER] = _LOADER_UNDEFINED
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    struct.pack_into("<I", page, CMD_LINE_PTR, cmdline)
    image, size = initrd or (0, 0)
    struct.pack_into("<I", page, RAMDISK_IMAGE, image)
    struct.pack_into("<I", page, RAMDISK_SIZE, size)
    page[E820_ENTRIES] = len(memory_map)
    for index, entry in enumerate(memory_map):
        _E820_ENTRY.pack_into(page, E820_TABLE + index * _E820_ENTRY.size, *entry)
    return bytes(page)
