"""What the guest is told about its physical memory, the same for PVH and for e820."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nemu.arch.x86_64 import layout

# ACPI 6.5, table 15.1 (address range types).  PVH's XEN_HVM_MEMMAP_TYPE_* are the same numbers.
RAM = 1
RESERVED = 2
ACPI = 3


class MapEntry(NamedTuple):
    """``size`` bytes from ``gpa`` on; ``kind`` is RAM, RESERVED or ACPI."""

    gpa: int
    size: int
    kind: int


def memory_map(regions: Sequence[tuple[int, int]]) -> list[MapEntry]:
    """The map of a machine with these RAM regions (gpa, size), the first of which starts at 0.

    The page range of the ACPI tables is taken out of RAM, or the guest could reuse it before
    it has read them.  ECAM is reserved because Linux uses it only where firmware says so.
    There is no hole for a VGA card or a BIOS: below 640 KiB Linux finds room for the code
    that starts its other CPUs.
    """
    low_end = regions[0][1]
    entries = [
        MapEntry(0, layout.ACPI_TABLES, RAM),
        MapEntry(layout.ACPI_TABLES, layout.ACPI_TABLES_END - layout.ACPI_TABLES, ACPI),
        MapEntry(layout.ACPI_TABLES_END, low_end - layout.ACPI_TABLES_END, RAM),
        MapEntry(layout.ECAM, layout.ECAM_SIZE, RESERVED),
    ]
    entries.extend(MapEntry(gpa, size, RAM) for gpa, size in regions[1:])
    return entries
