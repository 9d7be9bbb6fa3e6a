"""ACPI tables that every architecture has, and their place in guest memory.

A table is ``bytes`` with its header and right checksum.  Sections are those of ACPI 6.5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

OEM_ID = b"NEMU  "
OEM_TABLE_ID = b"NEMUVIRT"
HYPERVISOR_VENDOR_ID = b"NEMU\0\0\0\0"

S5_SLEEP_TYPE = 5  # SLP_TYP of soft-off: our choice, told by ``_S5``

_RSDP_SIZE = 36
_ALIGNMENT = 16

# FADT fixed feature flags (table 5.10).
_WBINVD = 1 << 0
_PWR_BUTTON = 1 << 4  # no fixed power button: PNP0C0C is the one
_SLP_BUTTON = 1 << 5  # no fixed sleep button
_RESET_REG_SUP = 1 << 10
_HW_REDUCED_ACPI = 1 << 20


def checksum(data: bytes) -> int:
    """The byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """``body`` behind a system description table header (5.2.6)."""
    size = 36 + len(body)
    head = struct.pack("<4sIBB6s8sI4sI", signature, size, revision, 0, OEM_ID, OEM_TABLE_ID, 1, OEM_ID[:4], 1)
    return head[:9] + bytes((checksum(head + body),)) + head[10:] + body


def rsdp(xsdt_gpa: int) -> bytes:
    """The root pointer, revision 2, without an RSDT (5.2.5.3)."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM_ID, 2, 0)
    first = first[:8] + bytes((checksum(first),)) + first[9:]
    data = first + struct.pack("<IQB3x", _RSDP_SIZE, xsdt_gpa, 0)
    return data[:32] + bytes((checksum(data),)) + data[33:]


def xsdt(gpas: Sequence[int]) -> bytes:
    """The list of the other tables (5.2.8)."""
    return table(b"XSDT", 1, struct.pack(f"<{len(gpas)}Q", *gpas))


class PowerRegisters(NamedTuple):
    """Guest-physical addresses of the byte-wide platform registers, and what makes ``reset`` reset."""

    sleep_control: int
    sleep_status: int
    reset: int
    reset_value: int


def _byte_register(gpa: int) -> bytes:
    """A generic address structure (5.2.3.2): system memory, 8 bits, byte access."""
    return struct.pack("<BBBBQ", 0, 8, 0, 1, gpa)


def fadt(dsdt_gpa: int, power: PowerRegisters, *, iapc_boot_arch: int = 0, arm_boot_arch: int = 0) -> bytes:
    """The fixed description of hardware-reduced ACPI (5.2.9): no PM1, no PM timer, no SCI, no FACS."""
    flags = _WBINVD | _PWR_BUTTON | _SLP_BUTTON | _RESET_REG_SUP | _HW_REDUCED_ACPI
    minor_version = 5
    fields = (
        struct.pack("<109x"),
        struct.pack("<HxI", iapc_boot_arch, flags),
        _byte_register(power.reset),
        struct.pack("<BHB", power.reset_value, arm_boot_arch, minor_version),
        struct.pack("<QQ", 0, dsdt_gpa),  # X_FIRMWARE_CTRL, X_DSDT
        struct.pack("<96x"),  # X_PM1a_EVT_BLK to X_GPE1_BLK
        _byte_register(power.sleep_control),
        _byte_register(power.sleep_status),
        HYPERVISOR_VENDOR_ID,
    )
    return table(b"FACP", 6, b"".join(fields)[36:])


def mcfg(ecam: int, last_bus: int) -> bytes:
    """Where the configuration space of segment 0 lies (PCI Firmware Specification 3.3, 4.1.2)."""
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", ecam, 0, 0, last_bus))


def lay_out(
    start: int, end: int, *, dsdt: bytes, fadt: Callable[[int], bytes], others: Sequence[bytes]
) -> bytes:
    """All tables as they lie in memory from ``start`` on, the RSDP first.

    ``fadt`` makes the FADT for the address of the DSDT.  ValueError when ``end`` is passed.
    """
    blob = bytearray(_RSDP_SIZE)

    def place(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % _ALIGNMENT))
        gpa = start + len(blob)
        blob.extend(data)
        return gpa

    fadt_gpa = place(fadt(place(dsdt)))
    blob[:_RSDP_SIZE] = rsdp(place(xsdt([fadt_gpa, *map(place, others)])))
    if start + len(blob) > end:
        raise ValueError(f"the ACPI tables take {len(blob)} bytes and have room for {end - start}")
    return bytes(blob)
