"""What a disk says about itself: INQUIRY, vital product data, mode pages, capacity (SPC-4, SBC-3).

Every function gives the whole answer; the allocation length of a command cuts it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nemu.backends.disk import MAX_DISCARD, MAX_ZEROES, SECTOR
from nemu.scsi.sense import INVALID_FIELD, NO_SAVED_PAGES, CheckConditionError

VENDOR, PRODUCT, REVISION = b"nemu    ", b"disk            ", b"1   "

MAX_TRANSFER = 0xFFFF  # blocks of one READ or WRITE
MAX_UNMAP = MAX_DISCARD // SECTOR  # blocks of one UNMAP, all descriptors together
MAX_UNMAP_DESCRIPTORS = 16
MAX_WRITE_SAME = MAX_ZEROES // SECTOR  # blocks

ABSENT = 0x7F  # peripheral qualifier and type of a unit that is not there (SPC-4, 6.6.2)
_VERSIONS = (0x00A0, 0x0460, 0x04C0)  # SAM-5, SPC-4, SBC-3
_WRITE_PROTECT, _DPO_FUA = 0x80, 0x10  # SBC-3, 6.4.1: device-specific parameter
_ALL_PAGES, _ALL_SUBPAGES = 0x3F, 0xFF


class Identity(NamedTuple):
    """``serial`` is the user's, or ""; ``name`` tells the disk from the others of the machine anyway."""

    blocks: int
    readonly: bool
    serial: str
    name: str


def standard_inquiry(peripheral: int = 0) -> bytes:
    """SPC-4, 6.6.2; ``peripheral`` 0 is a connected disk."""
    # version SPC-4; hierarchical LUNs, response format 2; command queuing
    head = struct.pack(">BBBBBBBB", peripheral, 0, 6, 0x12, 59, 0, 0, 0x02)
    return head + VENDOR + PRODUCT + REVISION + bytes(22) + struct.pack(">3H", *_VERSIONS)


def vital_product_data(page: int, of: Identity) -> bytes:
    """SPC-4, 7.8; SBC-3, 6.6.  Raises CheckConditionError for a page that is not there."""
    contents = {
        0x83: _identification(of),
        0xB0: _block_limits(of),
        0xB1: struct.pack(">H58x", 1),  # a rotation rate of 1: nothing rotates
        0xB2: struct.pack(">BBBB", 0, 0 if of.readonly else 0xE0, 0 if of.readonly else 2, 0),
    }
    if of.serial:
        contents[0x80] = of.serial.encode()
    contents[0x00] = bytes(sorted({0, *contents}))
    if page not in contents:
        raise CheckConditionError(INVALID_FIELD)
    return struct.pack(">BBH", 0, page, len(contents[page])) + contents[page]


def _identification(of: Identity) -> bytes:
    """One designator, ASCII, by a T10 vendor (SPC-4, 7.8.6)."""
    name = VENDOR + (of.serial or of.name).encode()
    return struct.pack(">BBBB", 2, 1, 0, len(name)) + name


def _block_limits(of: Identity) -> bytes:
    """SBC-3, 6.6.4.  Unmapping is in units of 4 KiB, which file systems punch holes in."""
    unmap = (0, 0, 0) if of.readonly else (MAX_UNMAP, MAX_UNMAP_DESCRIPTORS, 8)
    same = 0 if of.readonly else MAX_WRITE_SAME
    # WSNZ: a WRITE SAME of no blocks is refused instead of meaning the whole disk
    return struct.pack(">BBHIIIIIIIQ20x", 1, 0, 8, MAX_TRANSFER, 0, 0, *unmap, 0, same)


def capacity_10(of: Identity) -> bytes:
    return struct.pack(">II", min(of.blocks - 1, 0xFFFF_FFFF), SECTOR)


def capacity_16(of: Identity) -> bytes:
    """SBC-3, 5.16: 4 KiB physical blocks where they fit; what may be unmapped does not read as zeroes."""
    exponent = 3 if of.blocks % 8 == 0 else 0
    return struct.pack(">QIBBBB16x", of.blocks - 1, SECTOR, 0, exponent, 0 if of.readonly else 0x80, 0)


def mode_sense(raw: bytes, of: Identity, *, long: bool) -> bytes:
    """The answer to MODE SENSE(6), or (10) if ``long`` (SPC-4, 6.13, 6.14).  Raises CheckConditionError."""
    control, page, subpage = raw[2] >> 6, raw[2] & 0x3F, raw[3]
    if control == 3:
        raise CheckConditionError(NO_SAVED_PAGES)
    if subpage not in (0, _ALL_SUBPAGES if page == _ALL_PAGES else 0):
        raise CheckConditionError(INVALID_FIELD)
    current = {
        0x01: bytes((0x80, *bytes(9))),  # read-write error recovery: AWRE, as the host does it
        0x08: bytes((0x04, *bytes(17))),  # caching: writes are, until SYNCHRONIZE CACHE
        0x0A: bytes((0, 0x10, *bytes(8))),  # control: commands may be reordered
    }
    if page != _ALL_PAGES and page not in current:
        raise CheckConditionError(INVALID_FIELD)
    wanted = current if page == _ALL_PAGES else {page: current[page]}
    pages = b""
    for number, content in wanted.items():
        shown = bytes(len(content)) if control == 1 else content  # 1: what can be changed is nothing
        pages += bytes((number, len(shown))) + shown
    no_descriptor = raw[1] & 0x08
    blocks = b"" if no_descriptor else struct.pack(">II", min(of.blocks, 0xFFFF_FFFF), SECTOR)
    specific = _DPO_FUA | (_WRITE_PROTECT if of.readonly else 0)
    if long:
        size = 6 + len(blocks) + len(pages)
        return struct.pack(">HBBBBH", size, 0, specific, 0, 0, len(blocks)) + blocks + pages
    size = 3 + len(blocks) + len(pages)
    return struct.pack(">BBBB", size, 0, specific, len(blocks)) + blocks + pages
