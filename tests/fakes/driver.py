"""The guest driver's side of a split virtqueue, written from virtio 1.2 section 2.7 alone.

It shares no code with nemu.virtio.queue, so that both cannot be wrong in the same way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemu.errors import GuestError, HostError
from nemu.interfaces import GuestMemory
from nemu.virtio.queue import Queue

RAM_SIZE = 4 << 20


@dataclass
class Buffer:
    """A chain that the driver made available: its head and where its device-writable parts lie."""

    head: int
    descriptors: list[int]
    writable: list[tuple[int, int]]  # (gpa, length)


@dataclass
class Used:
    """A chain that came back: ``written`` as the device reported it, ``data`` all of its writable bytes."""

    buffer: Buffer
    written: int
    data: bytes


@dataclass
class FakeTransport:
    """Implements nemu.virtio.device.Transport and remembers what it was told."""

    stopped: list[GuestError | HostError] = field(default_factory=list)
    config_changes: int = 0

    def config_changed(self) -> None:
        self.config_changes += 1

    def stop(self, error: GuestError | HostError) -> None:
        self.stopped.append(error)


class Driver:
    """Rings of ``size`` at ``base`` in ``memory``; buffers come from behind them up to ``end``."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        *,
        base: int = 0x10000,
        end: int = 0x100000,
        event_idx: bool = False,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.interrupts = 0
        self.desc = base
        self.avail = base + 16 * size
        self.used = -(-(self.avail + 6 + 2 * size) // 4) * 4
        self._data = -(-(self.used + 6 + 8 * size) // 4096) * 4096
        self._next_data = self._data
        self._end = end
        self._free = list(range(size))
        self._avail_idx = 0
        self._used_idx = 0
        self._outstanding: dict[int, Buffer] = {}

    def queue(self, interrupt: Callable[[], None] | None = None) -> Queue:
        """The device's side."""
        return Queue(
            self.memory,
            size=self.size,
            desc=self.desc,
            avail=self.avail,
            used=self.used,
            event_idx=self.event_idx,
            interrupt=interrupt or self._interrupted,
        )

    def add(
        self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), *, indirect: bool = False
    ) -> Buffer:
        """Make one chain available: ``readable`` contents, then ``writable`` lengths."""
        parts: list[tuple[int, int, int]] = []
        for content in readable:
            parts.append((self.place(content), len(content), 0))
        places = [(self.place(b"\xee" * length), length) for length in writable]
        parts += [(gpa, length, 2) for gpa, length in places]
        table = [
            (gpa, length, flags | (1 if number + 1 < len(parts) else 0))
            for number, (gpa, length, flags) in enumerate(parts)
        ]
        if indirect:
            raw = b"".join(
                struct.pack("<QIHH", gpa, length, flags, number + 1)
                for number, (gpa, length, flags) in enumerate(table)
            )
            table = [(self.place(raw, align=16), len(raw), 4)]
        descriptors = [self._free.pop(0) for _ in table]
        for number, (gpa, length, flags) in enumerate(table):
            following = descriptors[number + 1] if flags & 1 else 0
            self.write_descriptor(descriptors[number], gpa, length, flags, following)
        buffer = Buffer(descriptors[0], descriptors, places)
        self._outstanding[buffer.head] = buffer
        self.make_available(buffer.head)
        return buffer

    def make_available(self, head: int) -> None:
        slot = self._avail_idx % self.size
        self.memory.write(self.avail + 4 + 2 * slot, struct.pack("<H", head & 0xFFFF))
        self._avail_idx += 1
        self.set_avail_idx(self._avail_idx)

    def set_avail_idx(self, value: int) -> None:
        self.memory.write(self.avail + 2, struct.pack("<H", value & 0xFFFF))

    def write_descriptor(self, index: int, gpa: int, length: int, flags: int, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def place(self, content: bytes, align: int = 1) -> int:
        """Put ``content`` into guest RAM, reusing the oldest room when it runs out."""
        self._next_data = -(-self._next_data // align) * align
        if self._next_data + len(content) > self._end:
            self._next_data = self._data
        gpa = self._next_data
        if content:
            self.memory.write(gpa, content)
        self._next_data += len(content)
        return gpa

    def collect(self) -> list[Used]:
        """Take back what the device used since the last call, and free its descriptors."""
        result = []
        (idx,) = struct.unpack("<H", self.memory.read(self.used + 2, 2))
        while self._used_idx % 0x10000 != idx:
            slot = self._used_idx % self.size
            head, written = struct.unpack("<II", self.memory.read(self.used + 4 + 8 * slot, 8))
            buffer = self._outstanding.pop(head)
            self._free += buffer.descriptors
            data = b"".join(self.memory.read(gpa, length) for gpa, length in buffer.writable)
            result.append(Used(buffer, written, data))
            self._used_idx += 1
        return result

    @property
    def wants_kick(self) -> bool:
        """Whether the device asked to be notified of the buffer made available last (2.7.10)."""
        if self.event_idx:
            (event,) = struct.unpack("<H", self.memory.read(self.used + 4 + 8 * self.size, 2))
            return bool((self._avail_idx - 1) % 0x10000 == event)
        (flags,) = struct.unpack("<H", self.memory.read(self.used, 2))
        return not flags & 1

    def suppress_interrupts(self) -> None:
        """2.7.7: by flag, or by a used_event that is far away."""
        if self.event_idx:
            self.set_used_event(self._used_idx + 0x8000)
        else:
            self.memory.write(self.avail, struct.pack("<H", 1))

    def set_used_event(self, value: int) -> None:
        self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", value & 0xFFFF))

    def _interrupted(self) -> None:
        self.interrupts += 1
