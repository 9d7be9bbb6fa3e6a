"""What a case is: a named tiny guest and what its run must look like."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny.program import Program

# Makes the operations, from a seeded generator and the number of physical address bits.
Make = Callable[[Program, random.Random, int], None]

TOP = (1 << 64) - 1
RAM_END = 64 << 20
WORST = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, 0xFFFF_FFFF, 1 << 63, TOP - 1, TOP)


@dataclass(frozen=True)
class Case:
    """``statuses`` are the right exit statuses; ``behaves``: the guest uses every device at the end.

    ``last_words``: the end of its log is shown on standard error.
    """

    make: Make
    behaves: bool = True
    statuses: tuple[int, ...] = (0,)
    options: tuple[str, ...] = ()
    boots: int = 1
    last_words: bool = False


CASES: dict[str, Case] = {}


def case(
    **settings: object,
) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        CASES[make.__name__] = Case(make, **settings)  # type: ignore[arg-type]
        return make

    return register


def number(rng: random.Random) -> int:
    """A value that may be one of the worst."""
    return rng.choice(WORST) if rng.random() < 0.5 else rng.getrandbits(64)
