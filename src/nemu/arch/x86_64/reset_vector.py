"""What is found at the PC's BIOS entry F000:FFF0: a jump to code that resets the machine.

Linux, told of hardware-reduced ACPI, takes it that there is UEFI to restart the machine.  Where
there is none it goes back to real mode and jumps to the BIOS (arch/x86/kernel/reboot.c, BOOT_BIOS).
This machine has no BIOS, but its reset register can be reached from here with a flat segment.
"""

from __future__ import annotations

import struct

from nemu.arch.x86_64 import layout

SEGMENT = 0xF000
ENTRY = 0xFFF0  # in SEGMENT, as the next two
_CODE = layout.RESET_STUB - (SEGMENT << 4)
_GDT = _CODE + 0x40

_FLAT_DATA = 0x00CF_9300_0000_FFFF  # 4 GiB from 0, writable, accessed
_FLAT_SELECTOR = 8


def image(register: int, value: int) -> tuple[int, bytes]:
    """(gpa, bytes) of code that writes the byte ``value`` to the address ``register``, below 4 GiB."""
    code = b"".join(
        (
            b"\xfa",  # cli
            b"\x2e\x0f\x01\x16" + struct.pack("<H", _GDT + 16),  # lgdt cs:[pointer]
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x0c\x01",  # or al, 1: protected mode
            b"\x0f\x22\xc0",  # mov cr0, eax
            b"\xb8" + struct.pack("<H", _FLAT_SELECTOR) + b"\x8e\xd8",  # mov ax, selector; mov ds, ax
            b"\x67\xc6\x05" + struct.pack("<IB", register, value),  # mov byte [register], value
            b"\xf4\xeb\xfd",  # hlt; jmp to it
        )
    )
    base = SEGMENT << 4
    gdt = struct.pack("<QQHI", 0, _FLAT_DATA, 15, base + _GDT)  # two entries, then the pointer to them
    jump = b"\xe9" + struct.pack("<h", _CODE - (ENTRY + 3))
    page = bytearray(0x10000 - _CODE)
    for offset, part in ((_CODE, code), (_GDT, gdt), (ENTRY, jump)):
        page[offset - _CODE : offset - _CODE + len(part)] = part
    return base + _CODE, bytes(page)
