"""A driver in the form of operations: virtio-pci by the book, and every way to leave the book.

Device N is in slot N and gets its BAR at ``bar(N)`` in the 32-bit window, where ``place`` puts it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from nemu.arch.x86_64 import layout
from nemu.virtio import pci
from nemu.virtio.common_config import (
    ACKNOWLEDGE,
    COMMON_MAP,
    DRIVER,
    DRIVER_OK,
    F_VERSION_1,
    FEATURES_OK,
    NEEDS_RESET,
    NO_VECTOR,
    Reg,
)
from tiny.program import Program

CONSOLE, BLK, RNG = 1, 2, 3  # slots
BALLOON = 4  # of a machine with one
DEVICE_IDS = {CONSOLE: 3, BLK: 2, RNG: 4}
QUEUES = {CONSOLE: (0, 1), BLK: (0,), RNG: (0,)}
DISK_SIZE = 1 << 20
DISK_MAGIC = 0x6E65_6D75_6469_736B  # the first 8 bytes of the disk

SIZE = 8  # of every queue
WINDOW = 0x90  # of the capability that reaches into the BAR from configuration space
RINGS = 0x100_0000  # where a queue's rings and buffers are: 64 KiB for each
DESC, AVAIL, USED, INDIRECT, DATA = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000
NEXT, WRITE, IS_INDIRECT = 1, 2, 4

RUNNING = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
STOPPED = RUNNING | NEEDS_RESET

REGISTERS = COMMON_MAP.places  # offset and width


class Descriptor(NamedTuple):
    gpa: int
    length: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        return struct.pack("<QIHH", self.gpa & (1 << 64) - 1, self.length, self.flags, self.next)


def config(slot: int, offset: int = 0) -> int:
    """The ECAM address of a register of function 0 in ``slot``."""
    return layout.ECAM + (slot << 15) + offset


def bar(slot: int) -> int:
    return layout.PCI32_START + slot * pci.BAR_SIZE


def rings(slot: int, queue: int = 0) -> int:
    return RINGS + (slot * 4 + queue) * 0x10000


def place(program: Program, slot: int, device_id: int = 0) -> None:
    """Put the BAR where the rest expects it, from whatever state.

    ``device_id`` is that of a device that not every machine has.
    """
    program.write(config(slot, 0x04), 2, 0)
    program.write(config(slot, 0x10), 4, bar(slot))
    program.write(config(slot, 0x14), 4, 0)
    program.write(config(slot, 0x04), 2, 6)
    program.check(config(slot), 4, (0x1040 + (device_id or DEVICE_IDS[slot])) << 16 | 0x1AF4)


def put(program: Program, slot: int, register: Reg, value: int) -> None:
    offset, width = REGISTERS[register]
    program.write(bar(slot) + offset, width, value)


def status(slot: int) -> int:
    return bar(slot) + REGISTERS[Reg.DEVICE_STATUS][0]


def reset(program: Program, slot: int, *, wait: bool = True) -> None:
    program.write(status(slot), 1, 0)
    if wait:
        program.wait(status(slot), 1, 0)


def negotiate(program: Program, slot: int, features: int = F_VERSION_1) -> None:
    put(program, slot, Reg.DEVICE_STATUS, ACKNOWLEDGE | DRIVER)
    for half in range(2):
        put(program, slot, Reg.DRIVER_FEATURE_SELECT, half)
        put(program, slot, Reg.DRIVER_FEATURE, features >> 32 * half & 0xFFFF_FFFF)
    put(program, slot, Reg.DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)


def set_queue(program: Program, slot: int, queue: int, **other: int) -> None:
    """Rings at ``rings(slot, queue)``, or ``desc``, ``avail``, ``used``, ``size``, ``vector`` as given."""
    base = rings(slot, queue)
    put(program, slot, Reg.QUEUE_SELECT, queue)
    put(program, slot, Reg.QUEUE_SIZE, other.get("size", SIZE))
    put(program, slot, Reg.QUEUE_MSIX_VECTOR, other.get("vector", NO_VECTOR))
    put(program, slot, Reg.QUEUE_DESC, other.get("desc", base + DESC))
    put(program, slot, Reg.QUEUE_DRIVER, other.get("avail", base + AVAIL))
    put(program, slot, Reg.QUEUE_DEVICE, other.get("used", base + USED))
    put(program, slot, Reg.QUEUE_ENABLE, 1)
    program.fill(base + AVAIL, bytes(24))
    program.fill(base + USED, bytes(80))


def start(
    program: Program,
    slot: int,
    features: int = F_VERSION_1,
    *,
    wait: bool = True,
    vector: int = NO_VECTOR,
    queues: Sequence[int] = (),
) -> None:
    """Reset, and up to DRIVER_OK with every queue (or ``queues``) enabled and empty."""
    reset(program, slot, wait=wait)
    negotiate(program, slot, features)
    for queue in queues or QUEUES[slot]:
        set_queue(program, slot, queue, vector=vector)
    put(program, slot, Reg.DEVICE_STATUS, RUNNING)


def offer(
    program: Program, slot: int, queue: int, chain: Sequence[Descriptor], heads: Sequence[int] = (0,)
) -> None:
    """Write descriptors from number 0 on, make ``heads`` available, and notify."""
    base = rings(slot, queue)
    program.fill(base + DESC, b"".join(descriptor.pack() for descriptor in chain))
    for number, head in enumerate(heads):
        program.write(base + AVAIL + 4 + 2 * number, 2, head)
    program.write(base + AVAIL + 2, 2, len(heads))
    notify(program, slot, queue)


def notify(program: Program, slot: int, queue: int) -> None:
    program.write(bar(slot) + pci.NOTIFY + queue * pci.NOTIFY_MULTIPLIER, 2, queue)


def wait_used(program: Program, slot: int, queue: int, count: int = 1) -> None:
    program.wait(rings(slot, queue) + USED + 2, 2, count)


def disk_request(program: Program, kind: int, sector: int, gpa: int, length: int = 512) -> None:
    """One request of virtio-blk, done to its end; its data are at ``gpa``."""
    base = rings(BLK)
    program.fill(base + DATA, struct.pack("<IIQ", kind, 0, sector))
    program.write(base + DATA + 16, 1, 0xEE)
    start(program, BLK)
    data = Descriptor(gpa, length, NEXT | (0 if kind else WRITE), 2)
    chain = [Descriptor(base + DATA, 16, NEXT, 1), data, Descriptor(base + DATA + 16, 1, WRITE)]
    offer(program, BLK, 0, chain)
    wait_used(program, BLK, 0)
    program.check(base + DATA + 16, 1, 0)


def say(program: Program, text: bytes) -> None:
    """Write ``text`` to the console and wait until it is taken."""
    start(program, CONSOLE)
    data = rings(CONSOLE, 1) + DATA
    program.fill(data, text)
    offer(program, CONSOLE, 1, [Descriptor(data, len(text))])
    wait_used(program, CONSOLE, 1)


def behave(program: Program) -> None:
    """Use every device as a good driver does, whatever was before; a fault is a panic or a time-out."""
    for slot in DEVICE_IDS:
        place(program, slot)
    data = rings(BLK) + DATA + 0x1000
    program.fill(data, bytes(512))
    disk_request(program, 0, 0, data)
    program.check(data, 8, DISK_MAGIC)
    start(program, RNG)
    entropy = rings(RNG) + DATA
    offer(program, RNG, 0, [Descriptor(entropy, 16, WRITE)])
    wait_used(program, RNG, 0)
    program.check(rings(RNG) + USED + 8, 4, 16)
    say(program, b"alive\n")
    for slot in DEVICE_IDS:
        program.check(status(slot), 1, RUNNING)
