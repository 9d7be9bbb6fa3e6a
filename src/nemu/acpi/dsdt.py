"""The DSDT: what each device says of itself, gathered into ``\\_SB``.

What has no device model of its own is described here: the PCI root, the motherboard
resources and the processors.  The tests quote the ASL that all of it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nemu.acpi import aml
from nemu.acpi.tables import S5_SLEEP_TYPE, table
from nemu.interfaces import AmlSource

if TYPE_CHECKING:
    from nemu.devices.hotplug import HotplugController

# _OSC for a PCI root (PCI Firmware Specification 3.3, 4.5): no hot-plug by native or SHPC controller
# (bits 0 and 1), but nothing of ours wants PME, AER, the PCIe capability or LTR for itself.
_PCI_OSC_UUID = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
_PCI_OSC_GRANTED = 0x3C
_OSC_UNKNOWN_UUID = 0x04
_OSC_UNKNOWN_REVISION = 0x08
_OSC_MASKED = 0x10


def dsdt(terms: Iterable[bytes], devices: Iterable[AmlSource]) -> bytes:
    """``terms`` and each device's AML in ``\\_SB``, and the one sleep state, S5 (7.4.2)."""
    system_bus = aml.scope("_SB", *terms, *(device.aml() for device in devices))
    soft_off = aml.name("_S5", aml.package(S5_SLEEP_TYPE, 0, 0, 0))
    return table(b"DSDT", 2, system_bus + soft_off)


def pci_root(last_bus: int, window32: tuple[int, int], window64: tuple[int, int]) -> bytes:
    """PCI0: segment 0, buses 0 to ``last_bus``, and two [start, end) windows; the second may be empty.

    There is no ``_PRT``: functions have MSI-X and no interrupt pin.
    """
    windows = [aml.word_bus_number(0, last_bus), aml.dword_memory(*window32)]
    if window64[0] < window64[1]:
        windows.append(aml.qword_memory(*window64))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisaid("PNP0A08")),
        aml.name("_CID", aml.eisaid("PNP0A03")),
        aml.name("_UID", 0),
        aml.name("_SEG", 0),
        aml.name("_BBN", 0),
        aml.name("_CRS", aml.resource_template(*windows)),
        _pci_osc(),
    )


def _pci_osc() -> bytes:
    """_OSC (6.2.11): answers which PCI Express features the system leaves to the guest."""
    answer = (
        aml.create_dword_field(aml.arg(3), 8, "CTRL"),
        aml.and_("CTRL", _PCI_OSC_GRANTED, aml.local(0)),
        aml.if_(aml.not_equal(aml.arg(1), 1), aml.or_("STAT", _OSC_UNKNOWN_REVISION, "STAT")),
        aml.if_(aml.not_equal("CTRL", aml.local(0)), aml.or_("STAT", _OSC_MASKED, "STAT")),
        aml.store(aml.local(0), "CTRL"),
    )
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.arg(3), 0, "STAT"),
        aml.if_(aml.equal(aml.arg(0), aml.touuid(_PCI_OSC_UUID)), *answer),
        aml.else_(aml.or_("STAT", _OSC_UNKNOWN_UUID, "STAT")),
        aml.return_(aml.arg(3)),
    )


def motherboard(ranges: Iterable[tuple[int, int]]) -> bytes:
    """PNP0C02: each (gpa, size) is taken.  Linux uses an ECAM only when it is reserved so."""
    reserved = (aml.memory32fixed(gpa, size) for gpa, size in ranges)
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisaid("PNP0C02")),
        aml.name("_UID", 0),
        aml.name("_CRS", aml.resource_template(*reserved)),
    )


def slot_name(slot: int) -> str:
    return f"S{slot:03X}"


def pci_slots(controller: HotplugController, slots: Iterable[int]) -> bytes:
    """The devices of the root bus that may come and go (6.1.1: ``_ADR`` of a PCI device)."""
    return aml.scope(
        "PCI0",
        *(
            aml.device(
                slot_name(slot),
                aml.name("_ADR", slot << 16),
                aml.name("_SUN", slot),
                *controller.eject_terms(slot),
            )
            for slot in slots
        ),
    )


def processor_name(number: int) -> str:
    return f"C{number:03X}"


def processors(count: int) -> bytes:
    """ACPI0007 devices; ``_UID`` n is processor n of the MADT (8.4)."""
    return b"".join(
        aml.device(
            processor_name(number),
            aml.name("_HID", aml.string("ACPI0007")),
            aml.name("_UID", number),
            aml.name("_STA", 0x0F),
        )
        for number in range(count)
    )
