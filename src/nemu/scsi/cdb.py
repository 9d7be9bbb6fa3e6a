"""Command descriptor blocks: operation codes, and where their fields lie (SPC-4, 4.3; SBC-3, 5)."""

from __future__ import annotations

from typing import NamedTuple

from nemu.scsi.sense import INVALID_FIELD, INVALID_OPCODE, CheckConditionError

TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, REPORT_LUNS = 0x00, 0x03, 0x12, 0xA0
MODE_SENSE_6, MODE_SENSE_10 = 0x1A, 0x5A
START_STOP_UNIT, PREVENT_ALLOW = 0x1B, 0x1E
READ_CAPACITY_10, SERVICE_ACTION_IN_16 = 0x25, 0x9E
READ_CAPACITY_16 = 0x10  # service action
READ_6, READ_10, READ_12, READ_16 = 0x08, 0x28, 0xA8, 0x88
WRITE_6, WRITE_10, WRITE_12, WRITE_16 = 0x0A, 0x2A, 0xAA, 0x8A
VERIFY_10, VERIFY_12, VERIFY_16 = 0x2F, 0xAF, 0x8F
SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16 = 0x35, 0x91
WRITE_SAME_10, WRITE_SAME_16, UNMAP = 0x41, 0x93, 0x42

CDB_MAX = 16  # bytes
_SIZES = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}  # by the group, the upper three bits of the operation code
_NACA = 1 << 2  # of the control byte; SPC-4, 6.4.2: not supported unless NORMACA says so


class _Place(NamedTuple):
    """Bytes ``start`` to ``end``, big-endian."""

    start: int
    end: int


_NOWHERE = _Place(0, 0)
# Where the length lies: of transfers and ranges in blocks, of allocations and parameter lists in bytes.
_LENGTHS = {
    REQUEST_SENSE: _Place(4, 5),
    INQUIRY: _Place(3, 5),
    REPORT_LUNS: _Place(6, 10),
    MODE_SENSE_6: _Place(4, 5),
    MODE_SENSE_10: _Place(7, 9),
    SERVICE_ACTION_IN_16: _Place(10, 14),
    UNMAP: _Place(7, 9),
    **dict.fromkeys((READ_6, WRITE_6), _Place(4, 5)),
    **dict.fromkeys((READ_10, WRITE_10, VERIFY_10, SYNCHRONIZE_CACHE_10, WRITE_SAME_10), _Place(7, 9)),
    **dict.fromkeys((READ_12, WRITE_12, VERIFY_12), _Place(6, 10)),
    **dict.fromkeys((READ_16, WRITE_16, VERIFY_16, SYNCHRONIZE_CACHE_16, WRITE_SAME_16), _Place(10, 14)),
    **dict.fromkeys((TEST_UNIT_READY, START_STOP_UNIT, PREVENT_ALLOW, READ_CAPACITY_10), _NOWHERE),
}
_ADDRESSES = {6: _Place(1, 4), 10: _Place(2, 6), 12: _Place(2, 6), 16: _Place(2, 10)}  # by the block's size


class Cdb(NamedTuple):
    """``lba`` and ``length`` as their places say, for commands that have them; ``raw`` has 16 bytes."""

    opcode: int
    raw: bytes
    lba: int
    length: int

    @classmethod
    def parse(cls, data: bytes) -> Cdb:
        """From at least one byte; what is behind the block does not count.  Raises CheckConditionError."""
        raw = data[:CDB_MAX].ljust(CDB_MAX, b"\0")
        opcode = raw[0]
        place = _LENGTHS.get(opcode)
        if place is None:
            raise CheckConditionError(INVALID_OPCODE)
        size = _SIZES[opcode >> 5]
        if len(data) < size or raw[size - 1] & _NACA:
            raise CheckConditionError(INVALID_FIELD)
        lba = int.from_bytes(raw[slice(*_ADDRESSES[size])], "big")
        length = int.from_bytes(raw[slice(*place)], "big")
        if opcode in (READ_6, WRITE_6):
            lba &= 0x1F_FFFF  # SBC-3, 5.9: 21 bits; a length of 0 is 256 blocks
            length = length or 256
        return cls(opcode, raw, lba, length)
