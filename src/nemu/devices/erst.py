"""Error record serialization (ACPI 6.5, section 18.5): a panicking kernel's last words.

Linux saves the end of its log into a platform's error record store when it panics, by code that
is always built in: no module, no console and no disk is needed.  This store keeps nothing;
it hands each record to ``report`` and forgets it.  Reads are memory: only a write exits.

    COMMAND        0x00  u32  BEGIN_* and END choose the operation, EXECUTE does it
    RECORD_OFFSET  0x04  u32  where in the buffer the record lies
    STATUS         0x08  u64  of the last operation
    RECORD_ID      0x10  u64  the next record in the store: always "none"
    ZERO           0x18  u64  "not busy", "no records", "no attributes"
    BUFFER         0x20  u64  address of the buffer
    BUFFER_SIZE    0x28  u64

Threat note: the buffer is memory that the guest writes without an exit.  A record is copied once,
is never longer than the buffer, and of a flood of records only the first MAX_REPORTS are looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum, auto

from nemu.acpi import tables
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import Pages

MAX_REPORTS = 16


class Register(Enum):
    COMMAND = auto()
    RECORD_OFFSET = auto()
    STATUS = auto()
    RECORD_ID = auto()
    ZERO = auto()
    BUFFER = auto()
    BUFFER_SIZE = auto()


REGISTERS = RegisterMap(
    [
        (Register.COMMAND, 0x00, 4),
        (Register.RECORD_OFFSET, 0x04, 4),
        (Register.STATUS, 0x08, 8),
        (Register.RECORD_ID, 0x10, 8),
        (Register.ZERO, 0x18, 8),
        (Register.BUFFER, 0x20, 8),
        (Register.BUFFER_SIZE, 0x28, 8),
    ],
    size=0x30,
)

# Values of COMMAND; ours, told to the guest by the table.
END, BEGIN_WRITE, BEGIN_OTHER, EXECUTE = 0, 1, 2, 3
# Table 18.16: command status
_SUCCESS, _RECORD_STORE_EMPTY = 0, 4
_NO_RECORD = (1 << 64) - 1
# The part of a UEFI common platform error record's header (UEFI 2.10, appendix N.2.1) that is read.
_SIGNATURE = b"CPER"
_LENGTH_OFFSET = 20
_HEADER_SIZE = 128


class ErrorRecordStore:
    """A BusHandler over ``pages`` with the record ``buffer`` at ``buffer_gpa``.

    ``report`` gets a copy of each record that the guest wrote, header included.
    """

    def __init__(
        self, pages: Pages, buffer: Pages, *, buffer_gpa: int, report: Callable[[bytes], None]
    ) -> None:
        self._page = RegisterPage(REGISTERS, pages.view)
        self._page[Register.STATUS] = _RECORD_STORE_EMPTY
        self._page[Register.RECORD_ID] = _NO_RECORD
        self._page[Register.BUFFER] = buffer_gpa
        self._page[Register.BUFFER_SIZE] = buffer.size
        self._buffer = buffer.view
        self._report = report
        self._reports = 0
        self._writing = False
        self.read = self._page.read
        self.register_name = REGISTERS.name

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        if register is Register.RECORD_OFFSET:
            self._page[register] = value
        elif register is Register.COMMAND:
            if value == EXECUTE:
                self._execute()
            else:
                self._writing = value == BEGIN_WRITE

    def _execute(self) -> None:
        self._page[Register.STATUS] = _SUCCESS if self._writing else _RECORD_STORE_EMPTY
        if self._writing and self._reports < MAX_REPORTS:
            self._reports += 1
            record = self._record(self._page[Register.RECORD_OFFSET])
            if record:
                self._report(record)

    def _record(self, offset: int) -> bytes:
        """The record at ``offset`` of the buffer, empty where there is none."""
        data = bytes(self._buffer[offset:])
        if len(data) < _HEADER_SIZE or not data.startswith(_SIGNATURE):
            return b""
        return data[: struct.unpack_from("<I", data, _LENGTH_OFFSET)[0]]


# --- the table -------------------------------------------------------------------------------

_READ_REGISTER, _READ_VALUE, _WRITE_REGISTER, _WRITE_VALUE, _NOOP = 0, 1, 2, 3, 4
_ALL = (1 << 64) - 1

# (serialization action of table 18.14, instruction of table 18.15, register, value)
_INSTRUCTIONS = (
    (0x0, _WRITE_VALUE, Register.COMMAND, BEGIN_WRITE),
    (0x1, _WRITE_VALUE, Register.COMMAND, BEGIN_OTHER),  # read
    (0x2, _WRITE_VALUE, Register.COMMAND, BEGIN_OTHER),  # clear
    (0x3, _WRITE_VALUE, Register.COMMAND, END),
    (0x4, _WRITE_REGISTER, Register.RECORD_OFFSET, 0),
    (0x5, _WRITE_VALUE, Register.COMMAND, EXECUTE),
    (0x6, _READ_VALUE, Register.ZERO, 1),  # check busy status
    (0x7, _READ_REGISTER, Register.STATUS, 0),
    (0x8, _READ_REGISTER, Register.RECORD_ID, 0),
    (0x9, _NOOP, Register.ZERO, 0),  # set record identifier
    (0xA, _READ_REGISTER, Register.ZERO, 0),  # record count
    (0xB, _WRITE_VALUE, Register.COMMAND, BEGIN_OTHER),  # dummy write
    (0xD, _READ_REGISTER, Register.BUFFER, 0),
    (0xE, _READ_REGISTER, Register.BUFFER_SIZE, 0),
    (0xF, _READ_REGISTER, Register.ZERO, 0),  # buffer attributes
)


def table(gpa: int) -> bytes:
    """The ERST for a store whose registers are at ``gpa``."""
    entries = [_entry(gpa, *instruction) for instruction in _INSTRUCTIONS]
    header = struct.pack("<IxxxxI", 48, len(entries))
    return tables.table(b"ERST", 1, header + b"".join(entries))


def _entry(gpa: int, action: int, instruction: int, register: Register, value: int) -> bytes:
    """One serialization instruction entry (table 18.13)."""
    offset, width = REGISTERS.places[register]
    # A generic address structure (5.2.3.2) in system memory; access size 3 is a dword, 4 a qword.
    address = struct.pack("<BBBBQ", 0, 8 * width, 0, 3 if width == 4 else 4, gpa + offset)
    mask = _ALL if width == 8 else (1 << 8 * width) - 1
    return struct.pack("<BBBx", action, instruction, 0) + address + struct.pack("<QQ", value, mask)
