"""The units of one controller by (target, LUN), and the commands that are about them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nemu import iovec
from nemu.scsi import cdb as op
from nemu.scsi import pages
from nemu.scsi.cdb import Cdb
from nemu.scsi.disk import ScsiDisk, answer
from nemu.scsi.sense import (
    INVALID_FIELD,
    NO_UNIT,
    UNITS_CHANGED,
    CheckConditionError,
    Io,
    Reply,
)

TARGETS, LUNS = 256, 1 << 14  # a target is one byte of an address, a LUN 14 bits
Address = tuple[int, int]


class NoTargetError(Exception):
    """Nothing answers at that target."""


def lun_field(lun: int) -> bytes:
    """Two bytes: peripheral device addressing below 256, flat space addressing above (SAM-5, 4.7.7)."""
    return struct.pack(">H", lun if lun < 256 else 0x4000 | lun)


class Bus:
    """Units, which may come and go while the machine runs."""

    def __init__(self) -> None:
        self._units: dict[Address, ScsiDisk] = {}

    def add(self, address: Address, unit: ScsiDisk) -> None:
        """``address`` is free."""
        self._tell(address[0])
        self._units[address] = unit

    def remove(self, address: Address) -> ScsiDisk:
        """No command reaches the unit any more.  KeyError when there is none."""
        unit = self._units.pop(address)
        self._tell(address[0])
        return unit

    def unit(self, address: Address) -> ScsiDisk | None:
        return self._units.get(address)

    def units_of(self, target: int) -> Iterator[tuple[Address, ScsiDisk]]:
        """The units of a target, by rising LUN."""
        return ((address, unit) for address, unit in sorted(self._units.items()) if address[0] == target)

    def targets(self) -> set[int]:
        return {target for target, _ in self._units}

    def start(
        self, address: Address, data: bytes, outgoing: iovec.Iovec, incoming: iovec.Iovec
    ) -> tuple[ScsiDisk | None, Reply | Io]:
        """Begin the command in ``data``: who works on it, and its result or I/O (see ScsiDisk.start).

        Raises NoTargetError and OverrunError.
        """
        unit = self._units.get(address)
        if unit is None and address[0] not in self.targets():
            raise NoTargetError
        try:
            cdb = Cdb.parse(data)
            if cdb.opcode == op.REPORT_LUNS:
                return None, self._report_luns(address[0], cdb, incoming)
            if unit is None:
                return None, _absent(cdb, incoming)
            return unit, unit.start(cdb, outgoing, incoming)
        except CheckConditionError as error:
            return None, Reply.failed(error.sense)

    def _report_luns(self, target: int, cdb: Cdb, incoming: iovec.Iovec) -> Reply:
        select = cdb.raw[2]
        if select > 2 or cdb.length < 16:
            raise CheckConditionError(INVALID_FIELD)
        luns = b""
        for (_, lun), unit in self.units_of(target):
            luns += lun_field(lun) + bytes(6)
            if UNITS_CHANGED in unit.attentions:  # SPC-4, 6.33: this is what it asked for
                unit.attentions.remove(UNITS_CHANGED)
        if select == 1:  # well-known units, of which there are none
            luns = b""
        return answer(cdb, incoming, struct.pack(">I4x", len(luns)) + luns)

    def _tell(self, target: int) -> None:
        for _, unit in self.units_of(target):
            unit.attend(UNITS_CHANGED)


def _absent(cdb: Cdb, incoming: iovec.Iovec) -> Reply:
    """A unit that is not there, of a target that is (SPC-4, 6.6.1; SAM-5, 5.11)."""
    if cdb.opcode == op.INQUIRY and not cdb.raw[1] and not cdb.raw[2]:
        return answer(cdb, incoming, pages.standard_inquiry(pages.ABSENT))
    if cdb.opcode == op.REQUEST_SENSE:
        return answer(cdb, incoming, NO_UNIT.descriptor() if cdb.raw[1] & 1 else NO_UNIT.fixed())
    raise CheckConditionError(NO_UNIT)
