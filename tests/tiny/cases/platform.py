"""Ports, holes and platform registers."""

from __future__ import annotations

import random
import zlib

from nemu.arch.x86_64 import layout
from tiny.case import RAM_END, case, number
from tiny.program import Program


@case()
def legacy_ports_read_all_ones(program: Program, rng: random.Random, bits: int) -> None:
    legacy = [
        0x00,
        0x20,
        0x21,
        0x40,
        0x43,
        0x60,
        0x61,
        0x64,
        0x70,
        0x71,
        0x80,
        0x92,
        0xA0,
        0xB2,
        0x1F0,
        0x3B4,
    ]
    legacy += [
        0x3D4,
        0x3F0,
        0x3F8,
        0x402,
        0x4D0,
        0x510,
        0x511,
        0x600,
        0x604,
        0x608,
        0xCF8,
        0xCF9,
        0xCFC,
        0xB004,
    ]
    for port in [*legacy, 0xFFFC, *(rng.randrange(0x10000 - 4) for _ in range(100))]:
        for width in (1, 2, 4):
            program.port_out(port, width, number(rng))
            program.port_in(port, width, (1 << 8 * width) - 1)
    program.port_out(0xCF8, 4, 0x8000_0000)
    program.port_in(0xCFC, 4, 0xFFFF_FFFF)
    program.port_in(0xFFFF, 4, 0xFFFF_FFFF)  # across the end of the port space
    for count in (1, 7, 4096, 20_000):
        program.string_io(rng.choice(legacy), count, out=True)
        program.string_io(rng.choice(legacy), count, out=False)


@case()
def holes_read_all_ones(program: Program, rng: random.Random, bits: int) -> None:
    top = 1 << min(bits, 47)
    holes = [RAM_END, layout.LOW_RAM_END - 8, layout.PCI32_START, layout.PCI32_END - 8]
    holes += [
        layout.PLATFORM + layout.PLATFORM_SIZE - 8,
        0xFEC0_1000,
        0xFED0_0000,
        0xFFFF_FFF0,
        1 << 32,
        top - 8,
    ]
    holes += [rng.randrange(1 << 33, top) & ~7 for _ in range(100)]
    for gpa in holes:
        for width in (1, 2, 4, 8):
            program.write(gpa, width, number(rng))
            program.check(gpa, width, (1 << 8 * width) - 1)
    # Half in RAM, half in nothing: RAM keeps its half.
    program.write(RAM_END - 4, 8, 0x1122_3344_5566_7788)
    program.check(RAM_END - 4, 8, 0xFFFF_FFFF_5566_7788)
    program.lock_or(RAM_END + 0x1000, 1)


@case()
def platform_registers(program: Program, rng: random.Random, bits: int) -> None:
    pages = list(range(layout.PLATFORM, layout.PLATFORM + layout.PLATFORM_SIZE, layout.PAGE_SIZE))
    pages += [layout.POWER, layout.GED, layout.PVPANIC, layout.ERST, layout.IOAPIC] * 4
    for _ in range(1500):
        width = rng.choice((1, 2, 4, 8))
        offset = rng.choice((rng.randrange(0x50), rng.randrange(4096), 4096 - width // 2 or 1))
        gpa, value = rng.choice(pages) + offset, number(rng)
        if rng.random() < 0.3:
            program.read(gpa, width)
        else:
            program.write(gpa, width, _harmless(gpa, width, value))


def _harmless(gpa: int, width: int, value: int) -> int:
    """``value`` without what ends a machine by right: power-off, reset, a panic."""
    data = bytearray((value & (1 << 8 * width) - 1).to_bytes(width, "little"))
    for index in range(width):
        place = gpa + index
        if place == layout.POWER:
            data[index] &= ~0x20
        elif place == layout.POWER + 2 and data[index] == 0x52:
            data[index] = 0x53
        elif place == layout.PVPANIC:
            data[index] &= ~1
    return int.from_bytes(data, "little")


@case()
def error_records(program: Program, rng: random.Random, bits: int) -> None:
    """A flood of records, none of a panic: of any length, and one that would inflate a thousandfold."""
    bomb = zlib.compress(b"x" * (10 << 20), wbits=-15)
    for length in (*(number(rng) for _ in range(40)), 128, 200, 201, len(bomb) + 200):
        _error_record(program, bomb if length > 1 << 32 else rng.randbytes(64), length & 0xFFFF_FFFF)
        program.write(layout.ERST + 0x04, 4, rng.choice((0, 0, layout.ERST_BUFFER_SIZE - 100, number(rng))))
        program.write(layout.ERST, 4, 3)


@case(behaves=False, statuses=(3,), last_words=True)
def panic_record(program: Program, rng: random.Random, bits: int) -> None:
    text = b"Panic#1 Part1\n<0>Kernel \x1b[2J panic: " + b"x" * 8000 + b"\n" + rng.randbytes(500)
    _error_record(program, text, 200 + len(text))
    program.write(layout.ERST, 4, 3)
    program.halt()


def _error_record(program: Program, section: bytes, length: int) -> None:
    """A record that says it has ``length`` bytes, ready to be executed."""
    record = b"CPER".ljust(20, b"\0") + length.to_bytes(4, "little")
    program.fill(layout.ERST_BUFFER, record.ljust(200, b"\0") + section)
    program.write(layout.ERST, 4, 1)
    program.write(layout.ERST + 0x04, 4, 0)
