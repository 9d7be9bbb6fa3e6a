"""A SCSI disk on a disk of the host: direct-access block commands (SBC-3), as Linux and others need them.

Threat note: every field of a command is checked here before anything is done for it: the range
within the capacity, lengths within what one command may ask for and within its data buffer.  Parameter
lists are copied once, and no more of them than is used.  A command that is not known, or has a bit set
that is not, ends with CHECK CONDITION.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from functools import partial

from nemu import iovec
from nemu.backends.disk import MAX_CACHED, SECTOR, Disk
from nemu.scsi import cdb as op
from nemu.scsi import pages
from nemu.scsi.cdb import Cdb
from nemu.scsi.sense import (
    INVALID_FIELD,
    INVALID_PARAMETER,
    LBA_OUT_OF_RANGE,
    LENGTH_ERROR,
    MISCOMPARE,
    NO_SENSE,
    NO_SPACE,
    POWER_ON_OR_RESET,
    READ_ERROR,
    STOPPED,
    WRITE_ERROR,
    WRITE_PROTECTED,
    CheckConditionError,
    Io,
    OverrunError,
    Reply,
    Sense,
)

_PROTECT = 0xE0  # byte 1 of reads and writes: protection information, which there is none of
_FUA = 0x08
_COMPARE_CHUNK = 1 << 20  # bytes
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")
# What is answered although a unit attention is pending (SAM-5, 5.14), or the unit is stopped.
_ALWAYS = (op.INQUIRY, op.REQUEST_SENSE, op.REPORT_LUNS)
_WHILE_STOPPED = (*_ALWAYS, op.START_STOP_UNIT, op.PREVENT_ALLOW, op.MODE_SENSE_6, op.MODE_SENSE_10)


class ScsiDisk:
    """A logical unit.  ``name`` tells it from the others of the machine where it has no ``serial``.

    ``attentions`` are what the initiator is told instead of its next commands' results.
    """

    def __init__(self, disk: Disk, name: str, serial: str = "") -> None:
        self.disk = disk
        self.attentions: list[Sense] = [POWER_ON_OR_RESET]
        self._identity = pages.Identity(disk.size // SECTOR, disk.readonly, serial, name)
        self._stopped = False
        self._commands: dict[int, Callable[[Cdb, iovec.Iovec, iovec.Iovec], Reply | Io]] = {
            op.TEST_UNIT_READY: lambda cdb, outgoing, incoming: Reply(),
            op.PREVENT_ALLOW: lambda cdb, outgoing, incoming: Reply(),  # there is nothing to remove
            op.REQUEST_SENSE: self._request_sense,
            op.INQUIRY: self._inquiry,
            op.MODE_SENSE_6: self._mode_sense,
            op.MODE_SENSE_10: self._mode_sense,
            op.START_STOP_UNIT: self._start_stop,
            op.READ_CAPACITY_10: self._read_capacity_10,
            op.SERVICE_ACTION_IN_16: self._service_action_in,
            op.UNMAP: self._unmap,
            **dict.fromkeys((op.READ_6, op.READ_10, op.READ_12, op.READ_16), self._read),
            **dict.fromkeys((op.WRITE_6, op.WRITE_10, op.WRITE_12, op.WRITE_16), self._write),
            **dict.fromkeys((op.VERIFY_10, op.VERIFY_12, op.VERIFY_16), self._verify),
            **dict.fromkeys((op.SYNCHRONIZE_CACHE_10, op.SYNCHRONIZE_CACHE_16), self._synchronize),
            **dict.fromkeys((op.WRITE_SAME_10, op.WRITE_SAME_16), self._write_same),
        }

    def start(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        """Begin a command: its result, or the I/O that will give it.

        ``outgoing`` is the initiator's data, ``incoming`` the room for ours.  Raises CheckConditionError
        and OverrunError.
        """
        if self.attentions and cdb.opcode not in _ALWAYS:
            raise CheckConditionError(self.attentions.pop(0))
        if self._stopped and cdb.opcode not in _WHILE_STOPPED:
            raise CheckConditionError(STOPPED)
        return self._commands[cdb.opcode](cdb, outgoing, incoming)

    def attend(self, sense: Sense) -> None:
        """Tell the initiator, once."""
        if sense not in self.attentions:
            self.attentions.append(sense)

    def reset(self) -> None:
        """As a logical unit reset leaves it (SAM-5, 6.3.3)."""
        self._stopped = False
        self.attentions = [POWER_ON_OR_RESET]

    # --- about the disk -----------------------------------------------------------------------

    def _request_sense(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply:
        sense = self.attentions.pop(0) if self.attentions else STOPPED if self._stopped else NO_SENSE
        return answer(cdb, incoming, sense.descriptor() if cdb.raw[1] & 1 else sense.fixed())

    def _inquiry(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply:
        if cdb.raw[1] & ~1 or (cdb.raw[2] and not cdb.raw[1]):
            raise CheckConditionError(INVALID_FIELD)
        if not cdb.raw[1]:
            return answer(cdb, incoming, pages.standard_inquiry())
        return answer(cdb, incoming, pages.vital_product_data(cdb.raw[2], self._identity))

    def _mode_sense(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply:
        data = pages.mode_sense(cdb.raw, self._identity, long=cdb.opcode == op.MODE_SENSE_10)
        return answer(cdb, incoming, data)

    def _read_capacity_10(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply:
        data = pages.capacity_10(self._identity)
        return answer(cdb._replace(length=len(data)), incoming, data)

    def _service_action_in(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply:
        if cdb.raw[1] & 0x1F != op.READ_CAPACITY_16:
            raise CheckConditionError(INVALID_FIELD)
        return answer(cdb, incoming, pages.capacity_16(self._identity))

    def _start_stop(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        power, eject, start = cdb.raw[4] & 0xF0, cdb.raw[4] & 0x02, cdb.raw[4] & 0x01
        if power or eject:
            raise CheckConditionError(INVALID_FIELD)
        self._stopped = not start
        return self._synchronized() if self._stopped else Reply()

    # --- data ---------------------------------------------------------------------------------------

    def _read(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        offset, size = self._transfer(cdb)
        views = _exactly(incoming, size)
        if size == 0 or (size <= MAX_CACHED and self.disk.read_cached(views, offset)):
            return Reply(transferred=size)
        return partial(_io, partial(self.disk.read, views, offset), READ_ERROR, size)

    def _write(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        self._need_writable()
        offset, size = self._transfer(cdb)
        views = _exactly(outgoing, size)
        if size == 0:
            return Reply()
        sync = cdb.opcode != op.WRITE_6 and bool(cdb.raw[1] & _FUA)
        if not sync and size <= MAX_CACHED and self.disk.write_cached(views, offset):
            return Reply(transferred=size)
        return partial(_io, partial(self.disk.write, views, offset, sync=sync), WRITE_ERROR, size)

    def _verify(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        """Compare with the initiator's data; without any (SBC-3, 5.33) the host's disk looks after itself."""
        compare = cdb.raw[1] >> 1 & 3
        if cdb.raw[1] & _PROTECT or compare > 1:
            raise CheckConditionError(INVALID_FIELD)
        if not compare:
            self._range(cdb.lba, cdb.length)
            return Reply()
        offset, size = self._transfer(cdb)
        return partial(self._compare, _exactly(outgoing, size), offset)

    def _compare(self, views: iovec.Iovec, offset: int) -> Reply:
        size = iovec.size(views)
        room = memoryview(bytearray(min(size, _COMPARE_CHUNK)))
        for done in range(0, size, _COMPARE_CHUNK):
            part = room[: size - done]
            reply = _io(partial(self.disk.read, [part], offset + done), READ_ERROR, size)
            if reply.status:
                return reply
            if iovec.gather(iovec.skip(views, done), len(part)) != part:
                return Reply.failed(MISCOMPARE)
        return Reply(transferred=size)

    def _synchronize(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        self._range(cdb.lba, cdb.length)
        return self._synchronized()

    def _synchronized(self) -> Reply | Io:
        return Reply() if self.disk.readonly else partial(_io, self.disk.flush, WRITE_ERROR)

    def _unmap(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        self._need_writable()
        if cdb.raw[1] & 1:  # anchoring
            raise CheckConditionError(INVALID_FIELD)
        if cdb.length == 0:
            return Reply()
        ranges = self._unmap_ranges(_exactly(outgoing, cdb.length), cdb.length)

        def discard() -> None:
            for offset, size in ranges:
                try:
                    self.disk.discard(offset, size)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:  # SBC-3, 4.7.3.4.2: it may stay mapped
                        raise

        return partial(_io, discard, WRITE_ERROR, cdb.length)

    def _unmap_ranges(self, views: iovec.Iovec, length: int) -> list[tuple[int, int]]:
        """(offset, bytes) of each range of a parameter list (SBC-3, 5.28.2)."""
        if length < 8:
            raise CheckConditionError(LENGTH_ERROR)
        data = iovec.gather(views, 8 + _UNMAP_DESCRIPTOR.size * (pages.MAX_UNMAP_DESCRIPTORS + 1))
        count = min(int.from_bytes(data[2:4], "big"), len(data) - 8) // _UNMAP_DESCRIPTOR.size
        if count > pages.MAX_UNMAP_DESCRIPTORS:
            raise CheckConditionError(INVALID_PARAMETER)
        found = [_UNMAP_DESCRIPTOR.unpack_from(data, 8 + _UNMAP_DESCRIPTOR.size * n) for n in range(count)]
        if sum(blocks for _, blocks in found) > pages.MAX_UNMAP:
            raise CheckConditionError(INVALID_PARAMETER)
        return [(self._range(lba, blocks), blocks * SECTOR) for lba, blocks in found if blocks]

    def _write_same(self, cdb: Cdb, outgoing: iovec.Iovec, incoming: iovec.Iovec) -> Reply | Io:
        self._need_writable()
        no_data = cdb.opcode == op.WRITE_SAME_16 and cdb.raw[1] & 0x01
        if cdb.raw[1] & ~(0x08 | no_data) or not 0 < cdb.length <= pages.MAX_WRITE_SAME:
            raise CheckConditionError(INVALID_FIELD)
        offset, size = self._range(cdb.lba, cdb.length), cdb.length * SECTOR
        block = bytes(SECTOR) if no_data else iovec.gather(_exactly(outgoing, SECTOR), SECTOR)
        if any(block):
            work = partial(self.disk.write_same, block, offset, size)
        else:
            work = partial(self.disk.write_zeroes, offset, size, unmap=bool(cdb.raw[1] & 0x08))
        return partial(_io, work, WRITE_ERROR, 0 if no_data else SECTOR)

    # --- checks -------------------------------------------------------------------------------------

    def _transfer(self, cdb: Cdb) -> tuple[int, int]:
        """(offset, bytes) of a read or write."""
        if cdb.opcode not in (op.READ_6, op.WRITE_6) and cdb.raw[1] & _PROTECT:
            raise CheckConditionError(INVALID_FIELD)
        if cdb.length > pages.MAX_TRANSFER:
            raise CheckConditionError(INVALID_FIELD)
        return self._range(cdb.lba, cdb.length), cdb.length * SECTOR

    def _range(self, lba: int, length: int) -> int:
        """The byte offset of ``length`` blocks at ``lba``."""
        if lba + length > self._identity.blocks:
            raise CheckConditionError(LBA_OUT_OF_RANGE)
        return lba * SECTOR

    def _need_writable(self) -> None:
        if self.disk.readonly:
            raise CheckConditionError(WRITE_PROTECTED)


def answer(cdb: Cdb, incoming: iovec.Iovec, data: bytes) -> Reply:
    """Give as much of ``data`` as the allocation length of ``cdb`` wants.  Raises OverrunError."""
    room = _exactly(incoming, cdb.length)
    return Reply(transferred=iovec.scatter(room, data))


def _exactly(views: iovec.Iovec, size: int) -> iovec.Iovec:
    """The first ``size`` bytes.  Raises OverrunError when there are fewer."""
    if iovec.size(views) < size:
        raise OverrunError
    return iovec.take(views, size)


def _io(work: Callable[[], None], failure: Sense, transferred: int = 0) -> Reply:
    """In a worker thread: ``work``, whose OSError is the command's ``failure``."""
    try:
        work()
    except OSError as error:
        return Reply.failed(NO_SPACE if error.errno == errno.ENOSPC else failure)
    return Reply(transferred=transferred)
