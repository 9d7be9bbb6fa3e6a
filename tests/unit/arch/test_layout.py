"""The address map: nothing overlaps, whatever the memory size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.arch.x86_64 import layout
from nemu.arch.x86_64.layout import GIB, MIB

MEMORY = st.integers(64, 1 << 22).map(lambda mib: mib * MIB)
FIXED = [
    (layout.ECAM, layout.ECAM + layout.ECAM_SIZE),
    (layout.PCI32_START, layout.PCI32_END),
    (layout.PLATFORM, layout.PLATFORM + layout.PLATFORM_SIZE),
    (layout.IOAPIC, layout.IOAPIC + 0x1000),
    (layout.LAPIC, layout.LAPIC + 0x1000),
    (layout.KVM_IDENTITY_MAP, layout.KVM_IDENTITY_MAP + 0x1000),
    (layout.KVM_TSS, layout.KVM_TSS + 0x3000),
]


@given(MEMORY, st.integers(36, 52))
def test_nothing_overlaps_and_no_memory_is_lost(size: int, bits: int) -> None:
    regions = layout.ram_regions(size)
    assert sum(length for _, length in regions) == size
    spans = [*((gpa, gpa + length) for gpa, length in regions), *FIXED]
    if regions[-1][0] + regions[-1][1] <= 1 << bits:
        start, end = layout.pci64_window(size, bits)
        assert start <= end <= 1 << bits
        if start < end:
            assert start % GIB == 0
            spans.append((start, end))
        start, end = layout.device_memory(size, bits)
        if start < end:
            assert start % GIB == end % GIB == 0
            spans.append((start, end))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("size", "regions"),
    [
        (64 * MIB, [(0, 64 * MIB)]),
        (2 * GIB, [(0, 2 * GIB)]),
        (2 * GIB + MIB, [(0, 2 * GIB), (4 * GIB, MIB)]),
        (100 * GIB, [(0, 2 * GIB), (4 * GIB, 98 * GIB)]),
    ],
)
def test_ram_goes_around_the_hole(size: int, regions: list[tuple[int, int]]) -> None:
    assert layout.ram_regions(size) == regions


def test_a_window_that_does_not_fit_is_empty() -> None:
    start, end = layout.pci64_window(64 * GIB, 36)
    assert start == end


def test_device_memory_lies_between_ram_and_the_pci_window() -> None:
    assert layout.device_memory(3 * GIB, 40) == (5 * GIB, 512 * GIB)
    assert layout.device_memory(512 * MIB, 40) == (4 * GIB, 512 * GIB)
    start, end = layout.device_memory(600 * GIB, 40)
    assert start == end


def test_boot_structures_are_below_1_mib_and_apart() -> None:
    spans = [
        (layout.GDT, layout.GDT + 32),
        (layout.PVH_START_INFO, layout.PVH_START_INFO + 0x1000),
        (layout.ZERO_PAGE, layout.ZERO_PAGE + 0x1000),
        (layout.BOOT_PAGE_TABLES, layout.BOOT_PAGE_TABLES + 6 * 0x1000),
        (layout.CMDLINE, layout.CMDLINE + layout.CMDLINE_MAX),
        (layout.ACPI_TABLES, layout.ACPI_TABLES_END),
    ]
    assert spans == sorted(spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= layout.KERNEL_START == MIB


def test_platform_registers_have_a_page_each() -> None:
    pages = [layout.POWER, layout.GED, layout.PVPANIC]
    assert len({page // 4096 for page in pages}) == len(pages)
    assert all(layout.PLATFORM <= page < layout.PLATFORM + layout.PLATFORM_SIZE for page in pages)
    assert all(page % 4096 == 0 for page in pages)


def test_wired_interrupts_and_messages_do_not_share_a_number() -> None:
    gsis = {layout.GSI_GED, layout.GSI_SERIAL}
    assert len(gsis) == layout.IOAPIC_PINS
    assert all(layout.IOAPIC_GSI_BASE <= gsi < layout.IOAPIC_GSI_BASE + layout.IOAPIC_PINS for gsi in gsis)
    assert max(gsis) < layout.GSI_MSI_BASE
