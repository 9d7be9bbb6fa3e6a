"""The ACPI tables of the x86-64 ``virt`` machine, written into guest memory.

Sections are those of ACPI 6.5.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import NamedTuple

from nemu.acpi import aml, dsdt, tables
from nemu.arch.x86_64 import layout
from nemu.devices import erst, power
from nemu.devices.hotplug import HotplugController
from nemu.interfaces import AmlSource, GuestMemory

# IA-PC boot architecture flags (table 5.11).  Not set: legacy devices, 8042, "MSI not supported".
_VGA_NOT_PRESENT = 1 << 2
_CMOS_RTC_NOT_PRESENT = 1 << 5

POWER = tables.PowerRegisters(
    sleep_control=layout.POWER + power.REGISTERS.places[power.Register.SLEEP_CONTROL][0],
    sleep_status=layout.POWER + power.REGISTERS.places[power.Register.SLEEP_STATUS][0],
    reset=layout.POWER + power.REGISTERS.places[power.Register.RESET][0],
    reset_value=power.RESET_VALUE,
)

# What PNP0C02 reserves: the ECAM, and the platform registers except the page of pvpanic, which
# its driver claims itself.
_RESERVED = (
    (layout.ECAM, layout.ECAM_SIZE),
    (layout.PLATFORM, layout.PVPANIC - layout.PLATFORM),
    (
        layout.PVPANIC + layout.PAGE_SIZE,
        layout.PLATFORM + layout.PLATFORM_SIZE - layout.PVPANIC - layout.PAGE_SIZE,
    ),
)

_ENABLED = 1
_ONLINE_CAPABLE = 2


def hotplug_processors(controller: HotplugController, count: int) -> bytes:
    """ACPI0007 devices that come and go; ``_MAT`` is what the MADT says of one that is there (6.2.10)."""
    return b"".join(
        aml.device(
            dsdt.processor_name(number),
            aml.name("_HID", aml.string("ACPI0007")),
            aml.name("_UID", number),
            aml.name("_MAT", aml.buffer(local_apic(number))),
            *controller.slot_terms(number),
        )
        for number in range(count)
    )


class NumaNode(NamedTuple):
    """One proximity domain: its CPUs by number and its (gpa, size) ranges of RAM."""

    cpus: Sequence[int]
    ranges: Sequence[tuple[int, int]]


def local_apic(cpu: int, flags: int = _ENABLED) -> bytes:
    """The structure of CPU ``cpu``, whose APIC id is its number (5.2.12.2)."""
    return struct.pack("<BBBBI", 0, 8, cpu, cpu, flags)


def madt(cpus: Collection[int], maximum: int, ioapic_gsi_base: int) -> bytes:
    """Local APICs, those that may come as well, and the IOAPIC (5.2.12), no 8259 (PCAT_COMPAT is 0)."""
    body = [struct.pack("<II", layout.LAPIC, 0)]
    body += [local_apic(cpu) for cpu in cpus]
    body += [local_apic(cpu, _ONLINE_CAPABLE) for cpu in range(maximum) if cpu not in cpus]
    body.append(struct.pack("<BBBxII", 1, 12, 0, layout.IOAPIC, ioapic_gsi_base))
    return tables.table(b"APIC", 5, b"".join(body))


def srat(nodes: Sequence[NumaNode]) -> bytes:
    """Which CPUs and memory belong to which proximity domain, that is index in ``nodes`` (5.2.16)."""
    body = [struct.pack("<I8x", 1)]
    for domain, node in enumerate(nodes):
        body += [struct.pack("<BBBBI8x", 0, 16, domain & 0xFF, cpu, _ENABLED) for cpu in node.cpus]
        body += [
            struct.pack("<BBIHQQII8x", 1, 40, domain, 0, gpa, size, 0, _ENABLED) for gpa, size in node.ranges
        ]
    return tables.table(b"SRAT", 3, b"".join(body))


def build(
    memory: GuestMemory,
    *,
    cpus: Collection[int],
    max_cpus: int,
    pci64: tuple[int, int],
    terms: Sequence[bytes],
    devices: Sequence[AmlSource],
    ioapic_gsi_base: int = layout.IOAPIC_GSI_BASE,
    nodes: Sequence[NumaNode] = (),
    device_tables: Sequence[bytes] = (),
) -> int:
    """Write all tables to layout.ACPI_TABLES; returns the RSDP's address.

    ``cpus`` are the numbers of those that are there, below ``max_cpus``.
    ``pci64`` is the [start, end) of the 64-bit PCI window, empty when there is none.
    ``terms`` go into ``\\_SB`` before the devices' own: the processors, what can be plugged.
    ``ioapic_gsi_base`` is 0 for the host kernel's IOAPIC.  ``nodes`` are at most 256.  ``device_tables`` are
    those of devices that not every machine has.
    """
    own = (
        dsdt.motherboard(_RESERVED),
        dsdt.pci_root(layout.PCI_LAST_BUS, (layout.PCI32_START, layout.PCI32_END), pci64),
        *terms,
    )
    others = [
        madt(cpus, max_cpus, ioapic_gsi_base),
        tables.mcfg(layout.ECAM, layout.PCI_LAST_BUS),
        erst.table(layout.ERST),
        *device_tables,
    ]
    if nodes:
        others.append(srat(nodes))
    blob = tables.lay_out(
        layout.ACPI_TABLES,
        layout.RESET_STUB,
        dsdt=dsdt.dsdt(own, devices),
        fadt=_fadt,
        others=others,
    )
    memory.write(layout.ACPI_TABLES, blob)
    return layout.ACPI_TABLES


def _fadt(dsdt_gpa: int) -> bytes:
    return tables.fadt(dsdt_gpa, POWER, iapc_boot_arch=_VGA_NOT_PRESENT | _CMOS_RTC_NOT_PRESENT)
