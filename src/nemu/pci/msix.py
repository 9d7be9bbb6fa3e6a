"""MSI-X: the vector table, the pending bits and the capability (PCI Local Bus 3.0, section 6.8.2).

Each vector is an eventfd.  While the vector is unmasked the kernel turns a signal on it into the
message (irqfd); while it is masked the signal simply stays in the eventfd, and is delivered when the
route is connected again.  So a vhost data plane signals the same eventfd and needs no code of ours.

Threat: the guest writes any address and data, masks and unmasks in a storm, writes halves of
entries.  The kernel delivers a message to the guest's own local APICs or to nobody.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemu.interfaces import MsiRouter

ENTRY_SIZE = 16
MAX_VECTORS = 128  # what fits into half a page; the standard allows 2048
CAPABILITY_ID = 0x11
CONTROL_ENABLE = 1 << 15
CONTROL_FUNCTION_MASK = 1 << 14
VECTOR_MASKED = 1

_ENTRY = struct.Struct("<QII")  # address, data, vector control
# Low two address bits and all vector control bits but the mask are reserved: read as zero.
_WRITABLE = _ENTRY.pack(0xFFFF_FFFF_FFFF_FFFC, 0xFFFF_FFFF, VECTOR_MASKED)


class MsixVector:
    """One vector (interfaces.IrqLine).  ``eventfd`` may be handed to a data plane outside."""

    __slots__ = ("_index", "_table", "eventfd")

    def __init__(self, table: MsixTable, index: int) -> None:
        self._table = table
        self._index = index
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def signal(self) -> None:
        """Machine lock held (the pending bits are a page that a mask write changes as well)."""
        if self.eventfd >= 0:  # a device may signal late, after the machine was taken apart
            os.eventfd_write(self.eventfd, 1)
            self._table.note_signal(self._index)


class MsixTable:
    """``table`` and ``pending`` are the views that the guest reads, zero at the start."""

    def __init__(self, count: int, table: memoryview, pending: memoryview, router: MsiRouter) -> None:
        assert 1 <= count <= MAX_VECTORS
        self._table = table[: count * ENTRY_SIZE]
        self._pending = pending
        self._router = router
        self._control = 0
        self.vectors = [MsixVector(self, index) for index in range(count)]
        for index in range(count):
            _ENTRY.pack_into(self._table, index * ENTRY_SIZE, 0, 0, VECTOR_MASKED)

    @property
    def size(self) -> int:
        """Bytes of the vector table."""
        return len(self._table)

    def set_control(self, control: int) -> None:
        """The guest wrote Message Control."""
        changed = (control ^ self._control) & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK)
        self._control = control
        if changed:
            for index in range(len(self.vectors)):
                self._update(index)

    def write(self, offset: int, width: int, value: int) -> None:
        """The guest wrote ``width`` bytes into the vector table."""
        data = value.to_bytes(width, "little")[: max(0, len(self._table) - offset)]
        for position, byte in enumerate(data, offset):
            self._table[position] = byte & _WRITABLE[position % ENTRY_SIZE]
        if data:
            for index in range(offset // ENTRY_SIZE, (offset + len(data) - 1) // ENTRY_SIZE + 1):
                self._update(index)

    def note_signal(self, index: int) -> None:
        if self._is_masked(index):
            self._pending[index // 8] |= 1 << index % 8

    def close(self) -> None:
        for vector in self.vectors:
            self._router.forget(vector.eventfd)
            os.close(vector.eventfd)
            vector.eventfd = -1

    def _is_masked(self, index: int) -> bool:
        if self._control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE:
            return True
        return bool(self._table[index * ENTRY_SIZE + 12] & VECTOR_MASKED)

    def _update(self, index: int) -> None:
        eventfd = self.vectors[index].eventfd
        if self._is_masked(index):
            self._router.disconnect(eventfd)
            return
        address, data, _ = _ENTRY.unpack_from(self._table, index * ENTRY_SIZE)
        self._pending[index // 8] &= ~(1 << index % 8)
        self._router.connect(eventfd, address, data)
