"""Configuration space and BARs."""

from __future__ import annotations

import random

from nemu.arch.x86_64 import layout
from nemu.virtio import pci
from tiny import devices
from tiny.case import RAM_END, TOP, case, number
from tiny.devices import (
    BLK,
    DEVICE_IDS,
    bar,
    config,
)
from tiny.program import Program


@case()
def configuration_space(program: Program, rng: random.Random, bits: int) -> None:
    """Every slot and function, worst in the headers of the devices, also across functions and busses."""
    for _ in range(2500):
        width = rng.choice((1, 2, 4, 8))
        where = rng.random()
        if where < 0.5:
            gpa = config(rng.randrange(5), rng.randrange(0x100))
        elif where < 0.7:
            gpa = config(rng.randrange(32), rng.randrange(0x8000))
        elif where < 0.8:
            gpa = config(rng.randrange(1, 32)) - rng.randrange(1, 8)
        else:
            gpa = layout.ECAM + rng.randrange(layout.ECAM_SIZE - 8)
        if rng.random() < 0.2:
            program.read(gpa, width)
        else:
            program.write(gpa, width, number(rng))
    program.check(config(0), 4, 0x0D57_8086)
    program.check(config(9), 4, 0xFFFF_FFFF)
    program.check(layout.ECAM + (1 << 20), 4, 0xFFFF_FFFF)
    program.lock_or(config(BLK, 4), 0)


@case()
def bars_everywhere(program: Program, rng: random.Random, bits: int) -> None:
    """BARs move while decoding is on and the devices are active."""
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        devices.start(program, slot)
    move_bars(program, rng, bits, 400)
    program.write(0x100_0000, 8, 0x1234)  # RAM is still RAM
    program.check(0x100_0000, 8, 0x1234)
    program.check(config(0), 4, 0x0D57_8086)


def move_bars(program: Program, rng: random.Random, bits: int, count: int) -> None:
    top = 1 << bits
    targets = [bar(slot) for slot in DEVICE_IDS]
    targets += [0, 0x100_0000, RAM_END, layout.LOW_RAM_END - 0x4000, layout.ECAM, layout.ECAM + (BLK << 15)]
    targets += [layout.PCI32_START, layout.PCI32_END - 0x4000, layout.PLATFORM, layout.IOAPIC, layout.LAPIC]
    targets += [0xFFFF_C000, 1 << 32, top // 2, top - 0x4000, top, (1 << 64) - 0x4000, 0xFFFF_FFFF, TOP]
    for step in range(count):
        slot, target = rng.choice(list(DEVICE_IDS)), rng.choice(targets)
        how = rng.random()
        if how < 0.4:
            program.write(config(slot, 0x10), 8, target)
        elif how < 0.8:
            halves = [(0x10, target & 0xFFFF_FFFF), (0x14, target >> 32)]
            for offset, half in halves if rng.random() < 0.5 else reversed(halves):
                program.write(config(slot, offset), 4, half)
        else:
            program.write(config(slot, 0x10 + rng.randrange(8)), rng.choice((1, 2)), number(rng))
        if rng.random() < 0.2:
            program.write(config(slot, 4), 2, rng.choice((0, 2, 6, 0xFFFF)))
        if step % 4 == 0:
            for gpa in (bar(rng.choice(list(DEVICE_IDS))), layout.PCI32_START, layout.PCI32_END - 0x4000):
                program.read(gpa + rng.choice((0, 0x14, 0x1000, 0x3000)), 4)
                program.write(gpa + rng.choice((0x16, 0x1000, pci.NOTIFY)), 2, number(rng))


@case()
def virtio_registers(program: Program, rng: random.Random, bits: int) -> None:
    """Any width at any offset of the BARs, with every device active at first."""
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        devices.start(program, slot)
    touch_bars(program, rng, 3000)


def touch_bars(program: Program, rng: random.Random, count: int) -> None:
    edges = [0x38, devices.status(0) - bar(0), 0x200, 0x1000, 0x1800, 0x2000, 0x3000, 0x4000]
    for _ in range(count):
        width = rng.choice((1, 2, 4, 8))
        where = rng.random()
        if where < 0.5:
            offset = rng.randrange(0x38)
        elif where < 0.8:
            offset = max(0, rng.choice(edges) + rng.randrange(-8, 8))
        else:
            offset = rng.randrange(pci.BAR_SIZE)
        gpa = bar(rng.choice(list(DEVICE_IDS))) + offset
        if pci.MSIX_TABLE - 8 < offset < pci.MSIX_PENDING or rng.random() < 0.2:
            program.read(gpa, width)  # the vector table has cases of its own
        else:
            program.write(gpa, width, rng.choice((number(rng), devices.RUNNING, rng.randrange(16))))


@case()
def configuration_window(program: Program, rng: random.Random, bits: int) -> None:
    """The BARs once more, unmapped, through the window in configuration space (virtio 1.2, 4.1.4.9)."""
    for slot in DEVICE_IDS:
        window = config(slot, devices.WINDOW)
        program.check(window + 2, 2, 0x0514)
        for _ in range(500):
            program.write(window + 4, 1, 0 if rng.random() < 0.9 else rng.randrange(256))
            offset = rng.choice(
                (rng.randrange(0x38), rng.randrange(0x1000), rng.randrange(0x1800, 0x4010), number(rng))
            )
            program.write(window + 8, 4, offset)
            program.write(window + 12, 4, rng.choice((1, 2, 4, 4, 8, 0, number(rng))))
            if rng.random() < 0.7:
                program.write(window + 16, rng.choice((1, 2, 4)), number(rng))
            else:
                program.read(window + 16, 4)
        devices.place(program, slot)
