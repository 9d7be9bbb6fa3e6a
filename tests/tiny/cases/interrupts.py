"""MSI-X tables."""

from __future__ import annotations

import random

from nemu.arch.x86_64 import layout
from nemu.virtio import pci
from nemu.virtio.common_config import Reg
from tiny import devices
from tiny.case import case, number
from tiny.devices import (
    CONSOLE,
    DATA,
    DEVICE_IDS,
    RNG,
    WRITE,
    Descriptor,
    bar,
    config,
    rings,
)
from tiny.program import Program


def _enable_msix(program: Program, slot: int) -> None:
    """Message Control is somewhere in the list; everywhere else the bit is read-only."""
    for offset in range(0x40, 0x100, 4):
        program.write(config(slot, offset + 2), 2, 0x8000)


def _vectors(program: Program, rng: random.Random, *, tame: bool) -> None:
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        _enable_msix(program, slot)
    for _ in range(60):
        for slot in DEVICE_IDS:
            devices.reset(program, slot)
            for _ in range(6):
                offset, width = rng.randrange(0x48), rng.choice((1, 2, 4, 8))
                value = rng.choice((number(rng), 0, 0xFEE0_0000))
                if tame and any(byte % 16 == 9 for byte in range(offset, offset + width)):
                    value = 0  # bits 10:8 of the data, the delivery mode: fixed
                program.write(bar(slot) + pci.MSIX_TABLE + offset, width, value)
            devices.start(program, slot, vector=rng.randrange(4))
            devices.put(program, slot, Reg.CONFIG_MSIX_VECTOR, rng.choice((0, 1, 2, 3, 0xFFFF)))
        _console_output(program)
        _entropy(program, rng)
        if rng.random() < 0.2:
            program.write(config(rng.choice(list(DEVICE_IDS)), rng.randrange(0x40, 0x100)), 2, number(rng))
            for slot in DEVICE_IDS:
                _enable_msix(program, slot)


def _console_output(program: Program) -> None:
    devices.offer(program, CONSOLE, 1, [Descriptor(rings(CONSOLE, 1) + DATA, 1)])
    devices.wait_used(program, CONSOLE, 1)


def _entropy(program: Program, rng: random.Random) -> None:
    devices.offer(program, RNG, 0, [Descriptor(rings(RNG) + DATA, rng.randrange(1, 64), WRITE)])
    devices.wait_used(program, RNG, 0)


@case()
def message_table(program: Program, rng: random.Random, bits: int) -> None:
    """Random vectors, with interrupts sent by them."""
    _vectors(program, rng, tame=True)


@case(options=("--irqchip", "kernel"))
def message_table_with_the_kernels_ioapic(program: Program, rng: random.Random, bits: int) -> None:
    _vectors(program, rng, tame=True)
    for _ in range(200):
        # Delivery mode fixed and masked or not; this guest takes no interrupt.
        for register, value in ((0x00, rng.randrange(0x40)), (0x10, number(rng) & ~0x700)):
            program.write(layout.IOAPIC + register, 4, value)


@case(statuses=(0, 3))
def wild_messages(program: Program, rng: random.Random, bits: int) -> None:
    """As above with every delivery mode, so the guest may well send itself an NMI or INIT and crash."""
    _vectors(program, rng, tame=False)
