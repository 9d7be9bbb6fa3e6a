"""The split virtqueue, device side (virtio 1.2, section 2.7), with every descriptor check.

    Layout in guest RAM, all little-endian (``n`` is the queue size):

    descriptor table  16 * n      addr u64, len u32, flags u16, next u16
    available ring    6 + 2 * n   flags u16, idx u16, ring u16[n], used_event u16
    used ring         6 + 8 * n   flags u16, idx u16, ring (id u32, len u32)[n], avail_event u16

Threat note: every field of the three rings is the guest's and may change while it is read.
Each is therefore read once into a local value, checked, and never read again.  A violation
raises GuestError; nothing here loops more than ``n`` times or keeps more than ``n`` chains
for one queue, whatever the guest writes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from nemu.errors import GuestError
from nemu.interfaces import GuestMemory

MAX_QUEUE_SIZE = 32768  # 2.7: the largest power of two that a u16 index can tell apart
MAX_CHAIN_BYTES = 0xFFFF_FFFF  # 2.7.5.2: a chain may not exceed 2**32 bytes, and ``used.len`` is a u32

# 2.7.5 descriptor flags
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1  # 2.7.6
USED_F_NO_NOTIFY = 1  # 2.7.8

_MANY = 8  # descriptors from which it pays to look at a table as a whole

_DESCRIPTOR = struct.Struct("<QIHH")
_FLAGS, _IDX, _RING = 0, 1, 2  # places of the 16-bit fields that both rings begin with

_barrier = threading.Lock()


def fence() -> None:
    """A full memory barrier: stores before it are visible to the guest before loads after it.

    Python has no barrier of its own.  Taking a lock is one on x86 in every CPython: the
    atomic compare-and-swap under ``threading.Lock`` is a LOCK-prefixed instruction.  (An
    AArch64 acquire is weaker: a port there needs another instruction here, and only here.)
    """
    with _barrier:
        pass


class Chain(NamedTuple):
    """One buffer of the driver: views of guest RAM itself, none of them empty.

    ``head`` goes back by ``Queue.push``.  The device reads ``readable`` and writes ``writable``.
    """

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Queue:
    """One enabled virtqueue.  All calls are made with the machine lock held.

    ``size`` is the number of descriptors; ``desc``, ``avail``, ``used`` are the rings' addresses.
    ``interrupt`` is called when the driver wants to hear of used buffers.  Raises GuestError
    when the size or an address is not what 2.7 allows.

    A data plane outside (vhost) takes the addresses and two eventfds, and nothing else is called then: the
    driver signals ``kick``, and a signal on ``call`` is the interrupt (-1 where the driver wants none).

    A device drains a queue like this, and so misses no buffer::

        queue.disable_notifications()
        while (chain := queue.pop()) is not None:
            queue.push(chain.head, written)
        queue.flush()
        more = queue.enable_notifications()
    """

    def __init__(
        self,
        memory: GuestMemory,
        *,
        size: int,
        desc: int,
        avail: int,
        used: int,
        event_idx: bool,
        interrupt: Callable[[], None],
        max_size: int = MAX_QUEUE_SIZE,
        kick: int = -1,
        call: int = -1,
    ) -> None:
        if not 0 < size <= min(max_size, MAX_QUEUE_SIZE) or size & (size - 1):
            raise GuestError(f"queue size {size} is not a power of two of at most {max_size}")
        for name, address, alignment in (
            ("descriptor", desc, 16),
            ("available", avail, 2),
            ("used", used, 4),
        ):
            if address % alignment:
                raise GuestError(f"{name} ring at {address:#x} is not aligned to {alignment} bytes")
        self.size = size
        self.desc, self.avail, self.used = desc, avail, used
        self.kick, self.call = kick, call
        self.in_flight = 0  # chains popped and not yet pushed
        self._memory = memory
        self._table = memory.view(desc, 16 * size)
        # Casts, because item access through them is one load or one store of the whole field.
        self._avail = memory.view(avail, 6 + 2 * size).cast("H")
        used_ring = memory.view(used, 6 + 8 * size)
        self._used = used_ring.cast("H")
        self._used_elements = used_ring[4 : 4 + 8 * size].cast("I")
        self._used_event = _RING + size
        self._avail_event = _RING + 4 * size
        self._mask = size - 1
        self._event_idx = event_idx
        self._interrupt = interrupt
        self._next_avail = 0
        self._next_used = 0
        self._published_used = 0

    def pop(self) -> Chain | None:
        """The next buffer that the driver made available, or None.  Raises GuestError."""
        pending = (self._avail[_IDX] - self._next_avail) & 0xFFFF
        if pending == 0:
            return None
        # A chain takes at least one descriptor, so an honest driver can have no more than
        # ``size`` outstanding; a hostile one would make the device hold ever more of them.
        if pending + self.in_flight > self.size:
            raise GuestError(f"{pending + self.in_flight} buffers available in a queue of {self.size}")
        head = self._avail[_RING + (self._next_avail & self._mask)]
        chain = self._walk(head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        self.in_flight += 1
        return chain

    def push(self, head: int, written: int) -> None:
        """Give chain ``head`` back with ``written`` bytes stored in it; ``flush`` makes it visible."""
        slot = 2 * (self._next_used & self._mask)
        self._used_elements[slot] = head
        self._used_elements[slot + 1] = written
        self._next_used = (self._next_used + 1) & 0xFFFF
        self.in_flight -= 1

    def flush(self) -> None:
        """Publish all pushed chains at once, and interrupt if the driver asked for it (2.7.7)."""
        old, new = self._published_used, self._next_used
        if old == new:
            return
        self._used[_IDX] = new  # x86 keeps stores in order: the elements are visible before it
        self._published_used = new
        fence()  # else the load below could miss a driver that enables interrupts and sees the old index
        if self._event_idx:
            event = self._avail[self._used_event]
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self._avail[_FLAGS] & AVAIL_F_NO_INTERRUPT
        if wanted:
            self._interrupt()

    def disable_notifications(self) -> None:
        """Tell the driver that its notifications are not needed (a hint, 2.7.10)."""
        if not self._event_idx:  # with it, an avail_event left behind says the same
            self._used[_FLAGS] = USED_F_NO_NOTIFY

    def enable_notifications(self) -> bool:
        """Ask for a notification of the next buffer; True when one is there already.

        On True the driver may not notify: the caller pops again or comes back by itself.
        """
        if self._event_idx:
            self._used[self._avail_event] = self._next_avail
        else:
            self._used[_FLAGS] = 0
        fence()  # else a buffer added before the driver saw the store above would go unnoticed
        return self._avail[_IDX] != self._next_avail

    def _walk(self, head: int) -> Chain:
        """Follow the chain from ``head``, through at most one indirect table at its end (2.7.5.3)."""
        chain = Chain(head, [], [])
        _, readable, writable = chain
        table: bytes | memoryview = self._table
        count, index, indirect = self.size, head, False
        unpack, memory = _DESCRIPTOR.unpack_from, self._memory
        total = 0
        # 2.7.5.3.1: also an indirect chain has at most ``size`` buffers; this ends loops as well.
        for _ in range(self.size):
            if index >= count:
                raise GuestError(f"descriptor {index} in a table of {count}")
            address, length, flags, following = unpack(table, 16 * index)
            if flags & DESC_F_INDIRECT and not indirect and not flags & DESC_F_NEXT:
                table, indirect = self._indirect_table(address, length), True
                count, index = length // 16, 0
                if count >= _MANY and not total and self._take_in_order(table, chain):
                    return chain
                address, length, flags, following = unpack(table)
            if flags & DESC_F_INDIRECT:
                raise GuestError(f"indirect descriptor {index} in an indirect table or with a successor")
            if flags & DESC_F_WRITE:
                writable.append(memory.view(address, length))
            elif writable:
                raise GuestError(f"descriptor {index} is readable behind a writable one")
            else:
                readable.append(memory.readable(address, length))
            total += length
            if total > MAX_CHAIN_BYTES:
                raise GuestError(f"a chain of more than {MAX_CHAIN_BYTES} bytes")
            if not flags & DESC_F_NEXT:
                return chain
            index = following
        raise GuestError(f"a chain of more than {self.size} descriptors")

    def _take_in_order(self, table: bytes, chain: Chain) -> bool:
        """Take an indirect table that is one chain from its first descriptor to its last, as drivers do.

        False, with nothing taken, for any other: the loop of ``_walk`` takes it or finds the fault.  A
        large request has hundreds of descriptors; a few steps over the whole table check the same as
        that loop in less time.
        """
        count = len(table) // 16
        half_words = memoryview(table).cast("H")
        flags = half_words[6::8].tolist()
        readable = flags.count(DESC_F_NEXT)
        if flags[-1] != DESC_F_WRITE:
            return False
        wanted = [DESC_F_NEXT] * readable + [DESC_F_NEXT | DESC_F_WRITE] * (count - 1 - readable)
        if flags[:-1] != wanted or half_words[7:-1:8].tolist() != list(range(1, count)):
            return False
        addresses = memoryview(table).cast("Q")[::2].tolist()
        lengths = memoryview(table).cast("I")[2::4].tolist()
        if sum(lengths) > MAX_CHAIN_BYTES:
            return False
        chain.readable.extend(map(self._memory.readable, addresses[:readable], lengths))
        chain.writable.extend(map(self._memory.view, addresses[readable:], lengths[readable:]))
        return True

    def _indirect_table(self, address: int, length: int) -> bytes:
        """A copy, which is also faster to read."""
        if length == 0 or length % 16 or length > 16 * self.size:
            raise GuestError(f"indirect table of {length} bytes in a queue of {self.size}")
        return bytes(self._memory.view(address, length))
