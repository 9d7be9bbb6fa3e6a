"""The configuration space of one PCI function (PCI Local Bus 3.0, section 6.1; PCI Express 7.5).

``view`` is the function's 4 KiB of ECAM and always what the guest reads.  What a write may change
is data as well: a mask of writable bits, so that one rule serves every register.
"""

from __future__ import annotations

import struct

SIZE = 4096
CAPABILITIES_END = 256

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION_ID, CLASS_CODE, HEADER_TYPE = 0x08, 0x09, 0x0E
BAR0, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, CAPABILITY_POINTER = 0x10, 0x2C, 0x2E, 0x34
BARS, ROM = range(BAR0, 0x28, 4), 0x30

COMMAND_MEMORY, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE = 1 << 1, 1 << 2, 1 << 10
STATUS_CAPABILITIES = 1 << 4

_NAMES = {
    0x00: "vendor", 0x02: "device", 0x04: "command", 0x06: "status", 0x08: "revision",
    0x0C: "cache_line_size", 0x0D: "latency_timer", 0x0E: "header_type", 0x0F: "bist",
    0x10: "bar0", 0x14: "bar1", 0x18: "bar2", 0x1C: "bar3", 0x20: "bar4", 0x24: "bar5",
    0x28: "cardbus_cis", 0x2C: "subsystem_vendor", 0x2E: "subsystem", 0x30: "rom", 0x34: "capabilities",
    0x3C: "interrupt_line", 0x3D: "interrupt_pin",
}  # fmt: skip


class ConfigSpace:
    """Header type 0 without ROM and without an interrupt pin (INTx is never wired here)."""

    def __init__(
        self, view: memoryview, *, vendor: int, device: int, class_code: int, revision: int = 0
    ) -> None:
        self.view = view
        view[:] = bytes(SIZE)
        self._writable = bytearray(SIZE)
        self._next_capability = 0x40
        self._last_pointer = CAPABILITY_POINTER
        self._capability_names: dict[int, str] = {}
        struct.pack_into("<HH", view, VENDOR_ID, vendor, device)
        struct.pack_into("<I", view, REVISION_ID, class_code << 8 | revision)
        struct.pack_into("<HH", view, SUBSYSTEM_VENDOR_ID, vendor, device)
        self.allow(
            COMMAND, (COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_bytes(2, "little")
        )
        # Registers without a function here that drivers write and expect to read back.
        self.allow(0x0C, b"\xff")  # cache line size
        self.allow(0x3C, b"\xff")  # interrupt line

    def allow(self, offset: int, mask: bytes) -> None:
        """Let the guest write the bits of ``mask`` from ``offset`` on."""
        self._writable[offset : offset + len(mask)] = mask

    def add_capability(self, identifier: int, body: bytes, name: str) -> int:
        """Append a capability whose bytes behind the two-byte header are ``body``; its offset."""
        offset = self._next_capability
        end = offset + 2 + len(body)
        assert end <= CAPABILITIES_END, "too many capabilities"
        self.view[offset:end] = bytes([identifier, 0]) + body
        self.view[self._last_pointer] = offset
        self._last_pointer = offset + 1
        self._next_capability = -(-end // 4) * 4
        self._capability_names[offset] = name
        self.view[STATUS] |= STATUS_CAPABILITIES
        return offset

    def u16(self, offset: int) -> int:
        return int(struct.unpack_from("<H", self.view, offset)[0])

    def u32(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.view, offset)[0])

    def set_u32(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.view, offset, value)

    def write(self, offset: int, width: int, value: int) -> None:
        """Change the writable bits of ``width`` bytes."""
        end = min(offset + width, SIZE)
        size = end - offset
        mask = int.from_bytes(self._writable[offset:end], "little")
        old = int.from_bytes(self.view[offset:end], "little")
        self.view[offset:end] = (old & ~mask | value & mask).to_bytes(size, "little")

    def is_fixed(self, offset: int, width: int) -> bool:
        """Whether no write to these bytes changes anything."""
        return not any(self._writable[offset : offset + width])

    def register_name(self, offset: int) -> str:
        for start in sorted(self._capability_names, reverse=True):
            if start <= offset < CAPABILITIES_END:
                return f"{self._capability_names[start]}+{offset - start:#x}"
        known = [start for start in _NAMES if start <= offset]
        return _NAMES[max(known)] if offset < 0x40 else f"{offset:#x}"
