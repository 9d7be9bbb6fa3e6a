"""Status and sense data: how a SCSI command ends (SAM-5, 5.3; SPC-4, 4.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

GOOD, CHECK_CONDITION, BUSY = 0x00, 0x02, 0x08


class Sense(NamedTuple):
    """Sense key, additional sense code and its qualifier."""

    key: int
    asc: int
    ascq: int

    def fixed(self) -> bytes:
        """Fixed format, current error (SPC-4, 4.5.3): 18 bytes."""
        return struct.pack(">BBB4xB4xBB4x", 0x70, 0, self.key, 10, self.asc, self.ascq)

    def descriptor(self) -> bytes:
        """Descriptor format, current error (SPC-4, 4.5.2): 8 bytes."""
        return struct.pack(">BBBB4x", 0x72, self.key, self.asc, self.ascq)


NO_SENSE = Sense(0x0, 0x00, 0x00)
STOPPED = Sense(0x2, 0x04, 0x02)  # not ready: initializing command required
READ_ERROR = Sense(0x3, 0x11, 0x00)
WRITE_ERROR = Sense(0x3, 0x0C, 0x00)
LENGTH_ERROR = Sense(0x5, 0x1A, 0x00)  # of the parameter list
INVALID_OPCODE = Sense(0x5, 0x20, 0x00)
LBA_OUT_OF_RANGE = Sense(0x5, 0x21, 0x00)
INVALID_FIELD = Sense(0x5, 0x24, 0x00)
NO_UNIT = Sense(0x5, 0x25, 0x00)  # logical unit not supported
INVALID_PARAMETER = Sense(0x5, 0x26, 0x00)
NO_SAVED_PAGES = Sense(0x5, 0x39, 0x00)
POWER_ON_OR_RESET = Sense(0x6, 0x29, 0x00)
UNITS_CHANGED = Sense(0x6, 0x3F, 0x0E)  # reported LUNs data
WRITE_PROTECTED = Sense(0x7, 0x27, 0x00)
NO_SPACE = Sense(0x7, 0x27, 0x07)  # space allocation failed write protect
MISCOMPARE = Sense(0xE, 0x1D, 0x00)  # during verify


class CheckConditionError(Exception):
    """The command ends with ``sense``."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense)
        self.sense = sense


class OverrunError(Exception):
    """The command moves more data than the initiator gave a buffer for."""


class Reply(NamedTuple):
    """``transferred`` bytes of the data buffer were used, from its start."""

    status: int = GOOD
    sense: bytes = b""
    transferred: int = 0

    @classmethod
    def failed(cls, sense: Sense) -> Reply:
        return cls(CHECK_CONDITION, sense.fixed())


Io = Callable[[], Reply]  # the part of a command that may wait for the host's disk
