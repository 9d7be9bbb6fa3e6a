"""Every guest-physical address and interrupt number of the x86-64 ``virt`` machine.

======================================  =====================================================
0 .. min(RAM, 2 GiB)                    RAM; boot structures below 1 MiB
0x8000_0000 .. 0x8FFF_FFFF              ECAM: room for 256 buses of the one segment
0x9000_0000 .. 0xFE9F_FFFF              32-bit PCI window
0xFEA0_0000 .. 0xFEA0_FFFF              platform registers, one page a block
0xFEC0_0000, 0xFEE0_0000                IOAPIC, local APIC (fixed by the architecture)
4 GiB .. 4 GiB + RAM - 2 GiB            the rest of RAM
above, aligned to 1 GiB                 device memory: persistent memory, each at a multiple of 1 GiB
the upper half of the address space     64-bit PCI window
======================================  =====================================================
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_SIZE = 4096

# RAM below 4 GiB ends where the ECAM begins, whatever its size, so that no address moves with it.
LOW_RAM_END = 2 * GIB
HIGH_RAM_START = 4 * GIB

# Boot structures: below 1 MiB, clear of 1-5 MiB and 8-24 MiB, which UEFI uses for itself.
GDT = 0x500
PVH_START_INFO = 0x6000  # one page with the module list and the memory map; firmware reads it late
ZERO_PAGE = 0x7000  # boot_params of the 64-bit boot protocol
BOOT_PAGE_TABLES = 0x9000  # PML4, PDPT and four page directories: identity map of the first 4 GiB
CMDLINE = 0x20000
CMDLINE_MAX = 64 * KIB
ACPI_TABLES = 0xE0000  # the RSDP is here first: Linux's search area as well
ACPI_TABLES_END = 0x100000
RESET_STUB = 0xFFF00  # behind the tables, up to 1 MiB: where a PC's BIOS has its entry (reset_vector)
KERNEL_START = 1 * MIB

ECAM = 0x8000_0000
ECAM_SIZE = 256 * MIB
# Without bridges bus 0 is all there is.  Linux looks for root buses up to the last one that MCFG
# names, which costs it a read exit for each of 32 devices on each of 255 buses.
PCI_LAST_BUS = 0
PCI32_START = 0x9000_0000
PCI32_END = 0xFEA0_0000  # exclusive

PLATFORM = 0xFEA0_0000
PLATFORM_SIZE = 64 * KIB
POWER = PLATFORM + 0x0000  # sleep control, sleep status, reset
GED = PLATFORM + 0x1000  # generic event device: pending events, acknowledge
PVPANIC = PLATFORM + 0x2000
ERST = PLATFORM + 0x3000  # error record serialization: a panicking kernel's last words
WATCHDOG = PLATFORM + 0x4000
CPU_HOTPLUG = PLATFORM + 0x5000
MEMORY_HOTPLUG = PLATFORM + 0x6000
PCI_HOTPLUG = PLATFORM + 0x7000
ERST_BUFFER = PLATFORM + 0x8000  # plain memory
ERST_BUFFER_SIZE = 16 * KIB

IOAPIC = 0xFEC0_0000
LAPIC = 0xFEE0_0000
# KVM on Intel needs three pages for real mode without "unrestricted guest", plus an identity map page.
KVM_IDENTITY_MAP = 0xFEFF_C000
KVM_TSS = 0xFEFF_D000

# Global system interrupts.  Our IOAPIC has just these, the second one only if there is a serial port
# (each pin costs Linux two dozen exits); the in-kernel one has 24 pins from 0.
IOAPIC_GSI_BASE = 16
GSI_GED = 16
GSI_SERIAL = 17
IOAPIC_PINS = 2
# MSI routes for irqfd come after every pin of the in-kernel IOAPIC.
GSI_MSI_BASE = 24

# The optional 16550 keeps the PC's place: early consoles look nowhere else.
SERIAL_PORT = 0x3F8
SERIAL_PORT_SIZE = 8

# PCI configuration mechanism #1, which this machine has not: Linux selects a register there more than
# a hundred times before it believes that.
LEGACY_PCI_ADDRESS_PORT = 0xCF8

MAX_CPUS = 255  # xAPIC ids 0 to 254; 255 is broadcast
MIN_MEMORY = 64 * MIB


def ram_regions(size: int) -> list[tuple[int, int]]:
    """(gpa, size) of each RAM region for ``size`` bytes of memory."""
    low = min(size, LOW_RAM_END)
    regions = [(0, low)]
    if size > low:
        regions.append((HIGH_RAM_START, size - low))
    return regions


def pci64_window(ram_size: int, physical_bits: int) -> tuple[int, int]:
    """(start, end) of the 64-bit PCI window; empty (start == end) where it does not fit.

    It lies in the upper half of what the guest can address, because RAM and device memory
    grow from below, but never overlaps RAM.
    """
    top = 1 << physical_bits
    start = max(top // 2, _above_ram(ram_size))
    return (start, top) if start < top else (top, top)


def device_memory(ram_size: int, physical_bits: int) -> tuple[int, int]:
    """(start, end) of the addresses for memory beside RAM: between RAM and the 64-bit PCI window.

    Empty (start == end) where RAM itself reaches into the upper half.
    """
    end = pci64_window(ram_size, physical_bits)[0]
    return min(_above_ram(ram_size), end), end


def _above_ram(ram_size: int) -> int:
    ram_end = HIGH_RAM_START + max(0, ram_size - LOW_RAM_END)
    return -(-ram_end // GIB) * GIB
