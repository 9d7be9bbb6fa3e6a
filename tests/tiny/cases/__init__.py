"""The tiny guests by name."""

from __future__ import annotations

import random

from tiny import devices
from tiny.case import CASES as CASES
from tiny.cases import (  # noqa: F401 (each registers its cases)
    interrupts,
    life_cycle,
    memory,
    pci,
    platform,
    queues,
    two_cpus,
)
from tiny.program import Program


def compile_case(name: str, seed: int, bits: int) -> bytes:
    """The ELF kernel of a case; ``bits`` are the physical address bits of a guest here."""
    chosen = CASES[name]
    program = Program()
    chosen.make(program, random.Random(f"{name} {seed}"), bits)
    if chosen.behaves:
        devices.behave(program)
        program.power_off()
    return program.elf()
