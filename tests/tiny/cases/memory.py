"""The balloon and the watchdog, of machines that have them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from nemu.arch.x86_64 import layout
from nemu.virtio.balloon import F_PAGE_POISON, F_REPORTING, F_STATS_VQ
from nemu.virtio.common_config import F_VERSION_1
from nemu.virtio.pci import DEVICE_CONFIG
from tiny import devices
from tiny.case import RAM_END, TOP, case, number
from tiny.devices import BALLOON, DATA, NEXT, WRITE, Descriptor, bar, rings
from tiny.program import Program

BALLOON_ID = 5
INFLATE, DEFLATE, STATS, REPORTING = range(4)
PAGE = 4096
FREE = 0x200_0000  # nothing of the program is from here on


def _start(program: Program, features: int = F_STATS_VQ | F_REPORTING) -> None:
    devices.start(program, BALLOON, F_VERSION_1 | features, queues=range(4))


def _offer(program: Program, queue: int, data: bytes, heads: Sequence[int] = (0,)) -> None:
    place = rings(BALLOON, queue) + DATA
    program.fill(place, data)
    devices.offer(program, BALLOON, queue, [Descriptor(place, len(data))], heads)


def _pfns(*pages: int) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


@case(options=("--balloon", "on"))
def balloon_pages(program: Program, rng: random.Random, bits: int) -> None:
    """Pages that are given back read as zeroes, twice and in a flood too; pages that are nowhere stop it."""
    devices.place(program, BALLOON, BALLOON_ID)
    for _ in range(10):
        first = FREE // PAGE + rng.randrange(64)
        for page in (first, first + 1):
            program.write(page * PAGE + 8, 8, TOP)
        _start(program)
        _offer(program, INFLATE, _pfns(first, first, first), [0] * 8)
        devices.wait_used(program, BALLOON, INFLATE, 8)
        program.check(first * PAGE + 8, 8, 0)
        program.check((first + 1) * PAGE + 8, 8, TOP)
        _offer(program, DEFLATE, _pfns(first, 0xFFFF_FFFF))
        devices.wait_used(program, BALLOON, DEFLATE)
    for wrong in (_pfns(RAM_END // PAGE), _pfns(FREE // PAGE, 0xFFFF_FFFF), bytes(1), bytes(7)):
        _start(program)
        _offer(program, INFLATE, wrong)
        program.wait(devices.status(BALLOON), 1, devices.STOPPED)


@case(options=("--balloon", "on"))
def balloon_reports(program: Program, rng: random.Random, bits: int) -> None:
    """Reports of anything: of parts of pages, over the end of memory, with a pattern in free pages."""
    devices.place(program, BALLOON, BALLOON_ID)
    for gpa, length in ((FREE, 1), (FREE + 1, PAGE), (FREE, 16 << 20), (FREE + 100, 3 * PAGE)):
        _start(program)
        program.write(FREE + 5 * PAGE, 8, TOP)
        devices.offer(program, BALLOON, REPORTING, [Descriptor(gpa, length, WRITE)])
        devices.wait_used(program, BALLOON, REPORTING)
        program.check(FREE + 5 * PAGE, 8, 0 if length > 5 * PAGE else TOP)
    _start(program, F_REPORTING | F_STATS_VQ | F_PAGE_POISON)
    program.write(bar(BALLOON) + DEVICE_CONFIG + 12, 4, 0xAAAA_AAAA)
    program.write(FREE, 8, TOP)
    devices.offer(program, BALLOON, REPORTING, [Descriptor(FREE, PAGE, WRITE)])
    devices.wait_used(program, BALLOON, REPORTING)
    program.check(FREE, 8, TOP)
    for wrong in ((RAM_END - PAGE, 2 * PAGE), (RAM_END, PAGE), (1 << 32, PAGE), (TOP - PAGE, 2 * PAGE)):
        _start(program)
        devices.offer(program, BALLOON, REPORTING, [Descriptor(*wrong, WRITE)])
        program.wait(devices.status(BALLOON), 1, devices.STOPPED)


@case(options=("--balloon", "64K"))
def balloon_soup(program: Program, rng: random.Random, bits: int) -> None:
    """Configuration and statistics of anything."""
    devices.place(program, BALLOON, BALLOON_ID)
    for _ in range(40):
        _start(program)
        for _ in range(10):
            width = rng.choice((1, 2, 4, 8))
            program.write(bar(BALLOON) + DEVICE_CONFIG + rng.randrange(20), width, number(rng))
        base = rings(BALLOON, STATS)
        program.fill(base + DATA, rng.randbytes(64))
        chain = [Descriptor(base + DATA, rng.randrange(1, 64), NEXT, 1), Descriptor(base + DATA, 5)]
        devices.offer(program, BALLOON, STATS, chain, [0] * rng.randrange(1, 8))
        program.delay(1000)
    program.check(bar(BALLOON) + DEVICE_CONFIG, 4, 16)  # the target is the host's


@case(options=("--watchdog", "none"))
def watchdog_flood(program: Program, rng: random.Random, bits: int) -> None:
    """Started, fed and stopped in a loop, with any time-out, and left to run out."""
    control, countdown, restart = layout.WATCHDOG, layout.WATCHDOG + 4, layout.WATCHDOG + 8
    for value in range(4000, 0, -1):
        program.write(countdown, 4, value)
        program.write(rng.choice((control, restart)), 4, 1)
    for _ in range(3000):
        program.write(layout.WATCHDOG + rng.randrange(0x18), rng.choice((1, 2, 4, 8)), number(rng))
        program.read(layout.WATCHDOG + rng.randrange(0x18), rng.choice((1, 2, 4, 8)))
    program.write(countdown, 4, 1)
    program.write(control, 4, 1)
    program.wait(control, 4, 0)
    program.check(layout.WATCHDOG + 0x10, 4, 1)
