"""Both CPUs of a machine against the VMM at the same time."""

from __future__ import annotations

import random

from tiny import devices
from tiny.case import case
from tiny.cases.pci import move_bars, touch_bars
from tiny.cases.queues import attack
from tiny.devices import (
    DEVICE_IDS,
)
from tiny.program import Program


@case(options=("--cpus", "2"))
def two_cpus_at_once(program: Program, rng: random.Random, bits: int) -> None:
    """One CPU uses the devices while the other moves their BARs, resets them and changes their rings."""
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        devices.start(program, slot)
    other = program.start_other_cpu()
    for _ in range(30):
        move_bars(other, rng, bits, 5)
        devices.place(other, rng.choice(list(DEVICE_IDS)))
        touch_bars(other, rng, 20)
        attack(program, rng, wait=False)
        touch_bars(program, rng, 20)
    program.join_other_cpu()
