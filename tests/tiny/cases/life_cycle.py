"""How a machine ends, and what is left of it."""

from __future__ import annotations

import random

from nemu.arch.x86_64 import layout
from tiny import devices
from tiny.case import RAM_END, case
from tiny.devices import (
    BLK,
    DATA,
    DEVICE_IDS,
    rings,
)
from tiny.program import Program


@case(behaves=False)
def power_off(program: Program, rng: random.Random, bits: int) -> None:
    program.power_off()


@case(behaves=False, options=("--cpus", "4"))
def power_off_of_four_cpus(program: Program, rng: random.Random, bits: int) -> None:
    program.power_off()


@case(behaves=False, statuses=(3,))
def triple_fault(program: Program, rng: random.Random, bits: int) -> None:
    program.crash()


@case(behaves=False, statuses=(3,))
def runs_what_is_no_memory(program: Program, rng: random.Random, bits: int) -> None:
    program.jump(rng.choice((RAM_END, layout.POWER + 0x800, layout.PLATFORM + 0x8000, 0xFFFF_FFF0, 1 << 33)))


@case(behaves=False, statuses=(3,))
def panic(program: Program, rng: random.Random, bits: int) -> None:
    program.panic()


@case(behaves=False, statuses=(4,), options=("--timeout", "1"))
def never_ends(program: Program, rng: random.Random, bits: int) -> None:
    program.halt()


@case()
def nothing(program: Program, rng: random.Random, bits: int) -> None:
    """Only the well-behaved end, against which the others are measured."""


@case(boots=20)
def twenty_boots(program: Program, rng: random.Random, bits: int) -> None:
    """Count boots on the disk; reset 19 times, with every device active."""
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        devices.start(program, slot)
    counter = rings(BLK) + DATA + 0x1000
    devices.disk_request(program, 0, 1, counter)
    program.add(counter, 1)
    devices.disk_request(program, 1, 1, counter)
    program.skip_if(counter, 20)
    program.reset()
