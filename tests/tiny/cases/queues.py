"""Virtqueues."""

from __future__ import annotations

import random
from collections.abc import Iterator

from nemu.arch.x86_64 import layout
from nemu.virtio.common_config import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, TRANSPORT_FEATURES, Reg
from tiny import devices
from tiny.case import RAM_END, TOP, case, number
from tiny.devices import (
    BLK,
    CONSOLE,
    DATA,
    DEVICE_IDS,
    INDIRECT,
    IS_INDIRECT,
    NEXT,
    QUEUES,
    RNG,
    SIZE,
    WRITE,
    Descriptor,
    bar,
    rings,
)
from tiny.program import Program


def _bad_setups(bits: int) -> list[dict[str, int]]:
    """What stops a device at DRIVER_OK."""
    outside = (RAM_END, RAM_END - 16, layout.ECAM, bar(BLK), layout.LAPIC, 1 << 32, 1 << 63, (1 << 64) - 16)
    setups = [{ring: gpa} for ring in ("desc", "avail", "used") for gpa in outside]
    setups += [{"size": size} for size in (0, 3, 7, 512, 0x8000, 0xFFFF)]
    return [*setups, {"desc": rings(BLK) + 8}, {"avail": rings(BLK) + 1}, {"used": rings(BLK) + 2}]


@case()
def bad_rings(program: Program, rng: random.Random, bits: int) -> None:
    for slot in DEVICE_IDS:
        devices.place(program, slot)
        for setup in _bad_setups(bits):
            devices.reset(program, slot)
            devices.negotiate(program, slot)
            devices.set_queue(program, slot, 0, **setup)
            devices.put(program, slot, Reg.DEVICE_STATUS, devices.RUNNING)
            program.check(devices.status(slot), 1, devices.STOPPED)
            devices.notify(program, slot, 0)


def _bad_chains(base: int) -> Iterator[tuple[list[Descriptor], dict[int, bytes], list[int]]]:
    """(descriptors, other memory by address, heads) that stop a device of any type."""
    good = Descriptor(base + DATA, 16)
    table = base + INDIRECT
    outside = (RAM_END, RAM_END - 8, layout.ECAM, layout.LAPIC, 1 << 32, 1 << 63, (1 << 64) - 8, TOP)
    for gpa in outside:
        yield [Descriptor(gpa, 16)], {}, [0]
        yield [Descriptor(gpa, 16, WRITE)], {}, [0]
        yield [Descriptor(gpa, 16, IS_INDIRECT)], {}, [0]
    for length in (0, 0xFFFF_FFFF, 0x8000_0000, RAM_END + 1):
        yield [Descriptor(base + DATA, length)], {}, [0]
        yield [Descriptor(base + DATA, length, WRITE)], {}, [0]
    for length in (0, 1, 15, 17, 16 * (SIZE + 1), 0xFFFF_FFF0, 0xFFFF_FFFF):
        yield [Descriptor(table, length, IS_INDIRECT)], {}, [0]
    yield [good], {}, [SIZE]
    yield [good], {}, [0xFFFF]
    yield [good], {}, [0] * (SIZE + 1)
    yield [good._replace(flags=NEXT, next=SIZE)], {}, [0]
    yield [good._replace(flags=NEXT, next=0)], {}, [0]
    yield [good._replace(flags=NEXT, next=1), good._replace(flags=NEXT, next=0)], {}, [0]
    yield [good._replace(flags=WRITE | NEXT, next=1), good], {}, [0]
    nested = Descriptor(table, 16, IS_INDIRECT).pack()
    yield [Descriptor(table, 16, IS_INDIRECT)], {table: nested}, [0]
    inner = Descriptor(table + 0x100, 16, IS_INDIRECT).pack()  # which would end well, were it allowed
    yield (
        [Descriptor(table, 16, IS_INDIRECT)],
        {table: inner, table + 0x100: good._replace(flags=WRITE).pack()},
        [0],
    )
    yield [Descriptor(table, 16, IS_INDIRECT | NEXT, 1), good], {table: good.pack()}, [0]
    loop = good._replace(flags=NEXT, next=0).pack()
    yield [Descriptor(table, 16, IS_INDIRECT)], {table: loop}, [0]
    full = b"".join(good._replace(flags=NEXT, next=index + 1).pack() for index in range(SIZE))
    yield [Descriptor(table, 16 * SIZE, IS_INDIRECT)], {table: full}, [0]
    chain = [good._replace(flags=NEXT, next=index + 1) for index in range(SIZE - 1)]
    longer = full[:-16] + good.pack()
    yield [*chain, Descriptor(table, 16 * SIZE, IS_INDIRECT)], {table: longer}, [0]


# What each queue does not take, though the rings allow it.
_WRONG = {
    (CONSOLE, 0): [[Descriptor(0x1000, 16)]],
    (BLK, 0): [
        [Descriptor(0x1000, 16)],
        [Descriptor(0x1000, 16, WRITE)],
        [Descriptor(0x1000, 15, NEXT, 1), Descriptor(0x2000, 1, WRITE)],
    ],
    (RNG, 0): [[Descriptor(0x1000, 16)]],
}


@case()
def bad_chains(program: Program, rng: random.Random, bits: int) -> None:
    """Each of them stops the device, every time anew."""
    for slot, queues in QUEUES.items():
        devices.place(program, slot)
        for queue in queues:
            chains = list(_bad_chains(rings(slot, queue)))
            chains += [(chain, {}, [0]) for chain in _WRONG.get((slot, queue), [])]
            for chain, memory, heads in chains:
                devices.start(program, slot, F_VERSION_1 | F_INDIRECT_DESC)
                for gpa, data in memory.items():
                    program.fill(gpa, data)
                devices.offer(program, slot, queue, chain, heads)
                program.wait(devices.status(slot), 1, devices.STOPPED)


@case()
def disk_requests(program: Program, rng: random.Random, bits: int) -> None:
    """Well-formed requests for what a disk cannot do: an error each, and the disk goes on."""
    devices.place(program, BLK)
    base = rings(BLK)
    data, answer = base + DATA + 0x1000, base + DATA + 16
    sectors = devices.DISK_SIZE // 512
    io, unsupported = 1, 2
    requests = [
        *((kind, sector, 512, io) for kind in (0, 1) for sector in (sectors, sectors + 1, 1 << 55, TOP)),
        *((kind, 0, length, io) for kind in (0, 1) for length in (1, 511, 513)),
        *((kind, 0, 512, unsupported) for kind in (2, 3, 5, 99, 0xFFFF_FFFF)),
        *((kind, 0, 15, io) for kind in (11, 13)),
    ]
    for kind, sector, length, result in requests:
        devices.start(program, BLK)
        program.fill(base + DATA, kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little"))
        program.write(answer, 1, 0xEE)
        middle = Descriptor(data, length, NEXT | (WRITE if kind == 0 else 0), 2)
        chain = [Descriptor(base + DATA, 16, NEXT, 1), middle, Descriptor(answer, 1, WRITE)]
        devices.offer(program, BLK, 0, chain)
        devices.wait_used(program, BLK, 0)
        program.check(answer, 1, result)
        program.check(devices.status(BLK), 1, devices.RUNNING)


@case()
def resets_with_io_in_flight(program: Program, rng: random.Random, bits: int) -> None:
    """Reset, sometimes several times and without waiting, right behind a notification."""
    devices.place(program, BLK)
    base = rings(BLK)
    data = base + DATA + 0x1000
    for _ in range(60):
        devices.start(program, BLK)
        program.fill(base + DATA, bytes(16))
        chain = [
            Descriptor(base + DATA, 16, NEXT, 1),
            Descriptor(data, 512 * rng.randrange(1, 64), NEXT | WRITE, 2),
            Descriptor(base + DATA + 16, 1, WRITE),
        ]
        devices.offer(program, BLK, 0, chain, [0] * rng.randrange(1, SIZE + 1))
        program.delay(rng.choice((1, 1000, 10_000)))
        for _ in range(rng.randrange(1, 4)):
            devices.reset(program, BLK, wait=False)
            devices.put(program, BLK, Reg.DEVICE_STATUS, rng.choice((devices.RUNNING, 1, 0)))


@case()
def soup(program: Program, rng: random.Random, bits: int) -> None:
    """Descriptors and rings of anything, which change while the device looks at them."""
    for slot in DEVICE_IDS:
        devices.place(program, slot)
    for _ in range(150):
        attack(program, rng)


def attack(program: Program, rng: random.Random, *, wait: bool = True) -> None:
    """One device with descriptors of anything; ``wait`` for its reset to be done before."""
    slot = rng.choice(list(DEVICE_IDS))
    queue = rng.choice(QUEUES[slot])
    base = rings(slot, queue)
    features = F_VERSION_1 | rng.choice((0, F_INDIRECT_DESC, F_EVENT_IDX, TRANSPORT_FEATURES))
    devices.start(program, slot, features, wait=wait)
    program.fill(base + INDIRECT, b"".join(_any_descriptor(rng, base).pack() for _ in range(SIZE)))
    chain = [_any_descriptor(rng, base) for _ in range(SIZE)]
    devices.offer(program, slot, queue, chain, [rng.randrange(SIZE) for _ in range(rng.randrange(1, SIZE))])
    for _ in range(rng.randrange(20)):
        place = rng.choice((devices.DESC, devices.AVAIL, devices.USED, INDIRECT)) + rng.randrange(0x40)
        program.write(base + place, rng.choice((1, 2, 4, 8)), number(rng))
    devices.notify(program, slot, queue)
    program.delay(rng.choice((1, 3000)))


def _any_descriptor(rng: random.Random, base: int) -> Descriptor:
    gpa = rng.choice((base + DATA, base + DATA, base, base + INDIRECT, RAM_END - 4, number(rng)))
    length = rng.choice((1, 16, 16, 32, 512, 4096, 0, 0xFFFF_FFFF))
    return Descriptor(gpa, length, rng.choice((0, 1, 1, 2, 3, 3, 4, 5, 7, 0xFFFF)), rng.randrange(SIZE + 1))
