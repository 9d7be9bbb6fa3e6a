"""Commands for a SCSI disk on a real image, byte by byte as the standards lay them out."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemu.backends.disk import Disk
from nemu.scsi.bus import Bus, NoTargetError
from nemu.scsi.disk import ScsiDisk
from nemu.scsi.sense import OverrunError, Reply

BLOCKS = 64
GOOD, CHECK = 0, 2
# (sense key, ASC, ASCQ)
INVALID_OPCODE, INVALID_FIELD, OUT_OF_RANGE = (5, 0x20, 0), (5, 0x24, 0), (5, 0x21, 0)
POWER_ON, PROTECTED, NOT_READY = (6, 0x29, 0), (7, 0x27, 0), (2, 4, 2)


class Rig:
    """One disk at target 0, LUN 0, whose power-on attention was taken."""

    def __init__(self, path: Path, *, readonly: bool = False, serial: str = "") -> None:
        self.path = path
        self.disk = Disk(str(path), readonly)
        self.unit = ScsiDisk(self.disk, "0:0", serial)
        self.bus = Bus()
        self.bus.add((0, 0), self.unit)
        self.unit.attentions.clear()

    def run(self, cdb: bytes, data: bytes = b"", room: int = 0, lun: int = 0) -> tuple[Reply, bytes]:
        """The reply, and what came into the buffer of ``room`` bytes."""
        incoming = bytearray(room)
        outgoing = [memoryview(bytearray(data))] if data else []
        views = [memoryview(incoming)] if room else []
        _, result = self.bus.start((0, lun), cdb, outgoing, views)
        reply = result if isinstance(result, Reply) else result()
        return reply, bytes(incoming[: reply.transferred]) if room else b""

    def sense(self, cdb: bytes, data: bytes = b"", room: int = 0, lun: int = 0) -> tuple[int, int, int]:
        """How a command fails."""
        reply, _ = self.run(cdb, data, room, lun)
        assert reply.status == CHECK
        assert reply.transferred == 0
        assert (reply.sense[0], reply.sense[7], len(reply.sense)) == (0x70, 10, 18)
        return reply.sense[2], reply.sense[12], reply.sense[13]

    def good(self, cdb: bytes, data: bytes = b"", room: int = 0) -> bytes:
        reply, got = self.run(cdb, data, room)
        assert reply.status == GOOD, reply.sense.hex()
        return got


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(BLOCKS * 512))
    return path


@pytest.fixture
def rig(image: Path) -> Iterator[Rig]:
    made = Rig(image)
    yield made
    made.disk.close()


def read(size: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    """READ(size)."""
    return transfer({6: 0x08, 10: 0x28, 12: 0xA8, 16: 0x88}[size], lba, blocks, flags)


def write(size: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return transfer({6: 0x0A, 10: 0x2A, 12: 0xAA, 16: 0x8A}[size], lba, blocks, flags)


def transfer(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    match opcode >> 5:
        case 0:
            return bytes((opcode, lba >> 16, lba >> 8 & 255, lba & 255, blocks & 255, 0))
        case 1 | 2:
            return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)
        case 5:
            return struct.pack(">BBIIBB", opcode, flags, lba, blocks, 0, 0)
        case _:
            return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)


# --- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 10, 12, 16])
def test_reads_and_writes_of_every_size_move_the_image(rig: Rig, image: Path, size: int) -> None:
    before = image.read_bytes()
    assert rig.good(read(size, 3, 2), room=1024) == before[3 * 512 : 5 * 512]
    rig.good(write(size, 60, 4), data=b"w" * 2048)
    assert image.read_bytes() == before[: 60 * 512] + b"w" * 2048


def test_a_length_of_0_is_256_blocks_in_6_bytes_and_nothing_in_others(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(300 * 512))
    rig = Rig(tmp_path / "large")
    assert rig.good(read(6, 1, 256), room=256 * 512) == (tmp_path / "large").read_bytes()[512 : 257 * 512]
    for size in (10, 12, 16):
        assert rig.good(read(size, 1, 0), room=512) == b""
        rig.good(write(size, 1, 0))
    rig.disk.close()


def test_fua_reaches_stable_storage(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError
        seen.append(flags)
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", pwritev)
    for flags in (0, 0x08, 0x18):
        rig.good(write(10, 0, 1, flags), data=bytes(512))
    assert seen == [0, os.RWF_DSYNC, os.RWF_DSYNC]


@pytest.mark.parametrize(("lba", "blocks"), [(64, 1), (63, 2), (0xFFFFFFFF, 1), (0, 65), (2, 0xFFFF)])
def test_what_lies_beyond_the_capacity_is_refused(rig: Rig, image: Path, lba: int, blocks: int) -> None:
    before = image.read_bytes()
    assert rig.sense(read(10, lba, blocks), room=512) == OUT_OF_RANGE
    assert rig.sense(write(16, lba, blocks), data=b"x" * 512) == OUT_OF_RANGE
    assert rig.sense(transfer(0x35, lba, blocks)) == OUT_OF_RANGE
    assert rig.sense(transfer(0x2F, lba, blocks)) == OUT_OF_RANGE
    assert image.read_bytes() == before


def test_the_largest_address_does_not_wrap(rig: Rig) -> None:
    assert rig.sense(read(16, (1 << 64) - 1, 2), room=1024) == OUT_OF_RANGE
    assert rig.sense(read(16, 0, 0x10000), room=512) == INVALID_FIELD  # more than one command may move


def test_a_buffer_that_is_too_small_is_an_overrun(rig: Rig) -> None:
    for cdb in (read(10, 0, 2), bytes((0x12, 0, 0, 0, 96, 0))):
        with pytest.raises(OverrunError):
            rig.run(cdb, room=95)
    with pytest.raises(OverrunError):
        rig.run(write(10, 0, 2), data=bytes(1023))


def test_more_room_than_data_is_left_alone(rig: Rig) -> None:
    reply, _ = rig.run(read(10, 0, 1), room=2048)
    assert reply == Reply(transferred=512)


@pytest.mark.parametrize("protect", [0x20, 0x60, 0xE0])
def test_protection_information_is_refused(rig: Rig, protect: int) -> None:
    assert rig.sense(read(10, 0, 1, protect), room=512) == INVALID_FIELD
    assert rig.sense(write(10, 0, 1, protect), data=bytes(512)) == INVALID_FIELD
    assert rig.sense(transfer(0x2F, 0, 1, protect)) == INVALID_FIELD
    assert rig.sense(transfer(0x93, 0, 1, protect), data=bytes(512)) == INVALID_FIELD


def test_synchronize_cache_reaches_stable_storage(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    rig.good(transfer(0x35, 0, 0))
    rig.good(transfer(0x91, 5, 3))
    assert synced == [rig.disk.fd] * 2


def test_verify_compares(rig: Rig, image: Path) -> None:
    content = image.read_bytes()
    rig.good(transfer(0x2F, 0, 64))
    for opcode in (0x2F, 0xAF, 0x8F):
        rig.good(transfer(opcode, 2, 3, 0x02), data=content[1024 : 5 * 512])
        assert rig.sense(transfer(opcode, 2, 3, 0x02), data=b"x" * 1536) == (0xE, 0x1D, 0)
        assert rig.sense(transfer(opcode, 2, 3, 0x04), data=b"x" * 1536) == INVALID_FIELD


def test_verify_compares_more_than_one_chunk(tmp_path: Path) -> None:
    content = bytearray(os.urandom(5 << 19))
    (tmp_path / "large").write_bytes(content)
    rig = Rig(tmp_path / "large")
    rig.good(transfer(0x8F, 0, len(content) // 512, 0x02), data=bytes(content))
    content[-1] ^= 1
    assert rig.sense(transfer(0x8F, 0, len(content) // 512, 0x02), data=bytes(content)) == (0xE, 0x1D, 0)
    rig.disk.close()


def unmap(*ranges: tuple[int, int], count: int | None = None) -> tuple[bytes, bytes]:
    """(CDB, parameter list)."""
    body = b"".join(struct.pack(">QI4x", *one) for one in ranges)
    size = len(body) if count is None else 16 * count
    data = struct.pack(">HH4x", 6 + size, size) + body
    return struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(data), 0), data


def test_unmap_makes_holes(rig: Rig, image: Path) -> None:
    expected = bytearray(image.read_bytes())
    rig.good(*unmap((8, 8), (0, 0), (32, 16)))
    expected[8 * 512 : 16 * 512] = bytes(8 * 512)
    expected[32 * 512 : 48 * 512] = bytes(16 * 512)
    assert image.read_bytes() == expected


def test_unmap_where_the_host_cannot_is_only_a_hint(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("nemu.backends.disk.fallocate", fails)
    rig.good(*unmap((8, 8)))


def test_wrong_unmap_lists_change_nothing(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    assert rig.sense(*unmap((64, 1))) == OUT_OF_RANGE
    assert rig.sense(*unmap((0, 8), (63, 2))) == OUT_OF_RANGE
    assert rig.sense(*unmap((1 << 63, 1))) == OUT_OF_RANGE
    assert rig.sense(*unmap(*[(0, 1)] * 17)) == (5, 0x26, 0)
    assert rig.sense(*unmap((0, 0xFFFFFFFF))) == (5, 0x26, 0)
    assert rig.sense(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0)), data=bytes(7)) == (5, 0x1A, 0)
    assert rig.sense(bytes((0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0)), data=bytes(24)) == INVALID_FIELD
    assert image.read_bytes() == before


def test_unmap_of_nothing_is_good(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    rig.good(bytes((0x42, *bytes(9))))
    rig.good(*unmap())
    rig.good(*unmap(count=100))  # more than the list has
    assert image.read_bytes() == before


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_write_same_repeats_a_block(rig: Rig, image: Path, opcode: int) -> None:
    expected = bytearray(image.read_bytes())
    block = os.urandom(512)
    rig.good(transfer(opcode, 4, 5), data=block)
    expected[4 * 512 : 9 * 512] = block * 5
    rig.good(transfer(opcode, 20, 8, 0x08), data=bytes(512))  # unmap
    expected[20 * 512 : 28 * 512] = bytes(8 * 512)
    rig.good(transfer(opcode, 40, 8), data=bytes(512))
    expected[40 * 512 : 48 * 512] = bytes(8 * 512)
    assert image.read_bytes() == expected


def test_write_same_without_data_writes_zeroes(rig: Rig, image: Path) -> None:
    rig.good(transfer(0x93, 8, 8, 0x01))
    assert image.read_bytes()[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert rig.sense(transfer(0x41, 8, 8, 0x01), data=bytes(512)) == INVALID_FIELD  # not of 10 bytes


@pytest.mark.parametrize(("blocks", "flags"), [(0, 0), (1, 0x10), (1, 0x02), (1, 0x04)])
def test_wrong_write_same_is_refused(rig: Rig, blocks: int, flags: int) -> None:
    assert rig.sense(transfer(0x93, 0, blocks, flags), data=bytes(512)) == INVALID_FIELD
    assert rig.sense(transfer(0x93, 0, (1 << 17) + 1), data=bytes(512)) == INVALID_FIELD


def test_a_read_only_disk_refuses_every_kind_of_write(image: Path) -> None:
    rig = Rig(image, readonly=True)
    before = image.read_bytes()
    for size in (6, 10, 12, 16):
        assert rig.sense(write(size, 0, 1), data=b"x" * 512) == PROTECTED
    for opcode in (0x41, 0x93):
        assert rig.sense(transfer(opcode, 0, 1), data=b"x" * 512) == PROTECTED
    assert rig.sense(*unmap((0, 8))) == PROTECTED
    rig.good(transfer(0x35, 0, 0))
    assert rig.good(read(10, 0, 1), room=512) == before[:512]
    assert image.read_bytes() == before
    assert rig.good(bytes((0x1A, 0, 0x3F, 0, 255, 0)), room=255)[2] == 0x90
    rig.disk.close()


@pytest.mark.parametrize(
    ("call", "cdb", "data", "room", "number", "sense"),
    [
        ("preadv", read(10, 0, 1), b"", 512, errno.EIO, (3, 0x11, 0)),
        ("pwritev", write(10, 0, 1), bytes(512), 0, errno.EIO, (3, 0x0C, 0)),
        ("pwritev", write(10, 0, 1), bytes(512), 0, errno.ENOSPC, (7, 0x27, 7)),
        ("fdatasync", transfer(0x35, 0, 0), b"", 0, errno.EIO, (3, 0x0C, 0)),
        ("preadv", transfer(0x2F, 0, 1, 2), bytes(512), 0, errno.EIO, (3, 0x11, 0)),
    ],
)
def test_an_error_of_the_host_reaches_the_guest_as_one(
    *,
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    cdb: bytes,
    data: bytes,
    room: int,
    number: int,
    sense: tuple[int, int, int],
) -> None:
    def fails(*_: object) -> int:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        assert rig.sense(cdb, data, room) == sense
    rig.run(cdb, data, room)


# --- about the disk ---------------------------------------------------------------------------


def test_inquiry_names_a_disk(rig: Rig) -> None:
    data = rig.good(bytes((0x12, 0, 0, 0, 255, 0)), room=255)
    assert (data[0], data[1], data[2], data[3] & 15, data[4]) == (0, 0, 6, 2, len(data) - 5)
    assert data[8:36] == b"nemu    disk            1   "
    assert rig.good(bytes((0x12, 0, 0, 0, 36, 0)), room=36) == data[:36]


def test_vital_product_data(image: Path) -> None:
    rig = Rig(image, serial="S-0001")

    def page(number: int) -> bytes:
        data = rig.good(bytes((0x12, 1, number, 0, 255, 0)), room=255)
        assert data[1] == number
        assert int.from_bytes(data[2:4], "big") == len(data) - 4
        return data[4:]

    assert list(page(0)) == [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    assert page(0x80) == b"S-0001"
    assert page(0x83) == bytes((2, 1, 0, 14)) + b"nemu    S-0001"
    limits = page(0xB0)
    assert len(limits) == 60
    assert struct.unpack_from(">I", limits, 4) == (0xFFFF,)  # blocks of one transfer
    assert struct.unpack_from(">II", limits, 16) == (1 << 21, 16)  # blocks, descriptors of one unmap
    assert struct.unpack_from(">Q", limits, 32) == (1 << 17,)  # blocks of one write same
    assert (len(page(0xB1)), page(0xB1)[:2]) == (60, b"\0\1")
    assert page(0xB2) == bytes((0, 0xE0, 2, 0))
    rig.disk.close()


def test_without_a_serial_number_there_is_no_page_for_it(rig: Rig) -> None:
    assert 0x80 not in rig.good(bytes((0x12, 1, 0, 0, 255, 0)), room=255)[4:]
    assert rig.sense(bytes((0x12, 1, 0x80, 0, 255, 0)), room=255) == INVALID_FIELD
    assert rig.good(bytes((0x12, 1, 0x83, 0, 255, 0)), room=255).endswith(b"nemu    0:0")


@pytest.mark.parametrize("head", [(2, 0), (0, 0x80), (1, 0x99), (3, 0)])
def test_a_wrong_inquiry_is_refused(rig: Rig, head: tuple[int, int]) -> None:
    assert rig.sense(bytes((0x12, *head, 0, 255, 0)), room=255) == INVALID_FIELD


def test_capacities(rig: Rig) -> None:
    assert rig.good(bytes((0x25, *bytes(9))), room=8) == struct.pack(">II", BLOCKS - 1, 512)
    cdb = struct.pack(">BB8xIBB", 0x9E, 0x10, 32, 0, 0)
    data = rig.good(cdb, room=32)
    assert data[:14] == struct.pack(">QIBB", BLOCKS - 1, 512, 0, 3)
    assert data[14] == 0x80  # it can be unmapped, and need not read as zeroes then
    assert rig.sense(struct.pack(">BB8xIBB", 0x9E, 0x12, 32, 0, 0), room=32) == INVALID_FIELD


def test_mode_pages(rig: Rig) -> None:
    short = rig.good(bytes((0x1A, 0, 0x08, 0, 255, 0)), room=255)
    assert (short[0], short[2], short[3]) == (len(short) - 1, 0x10, 8)
    assert short[4:12] == struct.pack(">II", BLOCKS, 512)
    assert short[12:15] == bytes((0x08, 18, 0x04))  # the write cache is on
    long = rig.good(struct.pack(">BBBBBBBHB", 0x5A, 0x08, 0x08, 0, 0, 0, 0, 255, 0), room=255)
    assert int.from_bytes(long[:2], "big") == len(long) - 2
    assert (long[3], long[6:8], long[8:]) == (0x10, b"\0\0", short[12:])
    changeable = rig.good(bytes((0x1A, 8, 0x48, 0, 255, 0)), room=255)
    assert changeable[4:] == bytes((0x08, 18, *bytes(18)))
    every = rig.good(bytes((0x1A, 8, 0x3F, 0, 255, 0)), room=255)
    pages, rest = [], every[4:]
    while rest:
        pages.append(rest[0])
        rest = rest[2 + rest[1] :]
    assert pages == [0x01, 0x08, 0x0A]
    assert every == rig.good(bytes((0x1A, 8, 0x3F, 0xFF, 255, 0)), room=255)


@pytest.mark.parametrize(
    ("head", "sense"),
    [
        ((0xC8, 0), (5, 0x39, 0)),
        ((0x1C, 0), INVALID_FIELD),
        ((0x08, 1), INVALID_FIELD),
        ((0x08, 0xFF), INVALID_FIELD),
    ],
)
def test_other_mode_pages_are_refused(rig: Rig, head: tuple[int, int], sense: tuple[int, int, int]) -> None:
    assert rig.sense(bytes((0x1A, 0, *head, 255, 0)), room=255) == sense


def test_a_stopped_disk_is_not_ready_until_it_is_started(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    rig.good(bytes(6))
    rig.good(bytes((0x1B, 0, 0, 0, 0, 0)))
    assert len(synced) == 1
    assert rig.sense(bytes(6)) == NOT_READY
    assert rig.sense(read(10, 0, 1), room=512) == NOT_READY
    assert rig.good(bytes((0x03, 0, 0, 0, 18, 0)), room=18)[12] == 4
    assert rig.good(bytes((0x12, 0, 0, 0, 36, 0)), room=36)
    rig.good(bytes((0x1B, 0, 0, 0, 1, 0)))
    rig.good(read(10, 0, 1), room=512)
    for flags in (0x02, 0x03, 0x11, 0x30):  # eject, power conditions
        assert rig.sense(bytes((0x1B, 0, 0, 0, flags, 0))) == INVALID_FIELD


def test_attentions_come_once_and_before_anything_else(rig: Rig) -> None:
    rig.unit.reset()
    assert rig.good(bytes((0x12, 0, 0, 0, 36, 0)), room=36)
    assert rig.sense(bytes(6)) == POWER_ON
    rig.good(bytes(6))
    rig.unit.reset()
    assert rig.good(bytes((0x03, 0, 0, 0, 252, 0)), room=252)[12] == 0x29
    rig.good(bytes(6))
    assert rig.good(bytes((0x03, 1, 0, 0, 252, 0)), room=252) == bytes((0x72, *bytes(7)))


def test_prevent_and_allow_have_nothing_to_do(rig: Rig) -> None:
    rig.good(bytes((0x1E, 0, 0, 0, 1, 0)))


# --- units ------------------------------------------------------------------------------------------


def report(size: int = 256, select: int = 0) -> bytes:
    return struct.pack(">BBB3xIBB", 0xA0, 0, select, size, 0, 0)


def test_report_luns_lists_the_units_of_the_target(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(512))
    other = Disk(str(tmp_path / "b"))
    for address in ((0, 300), (0, 7), (1, 0)):
        rig.bus.add(address, ScsiDisk(other, "x"))
    data = rig.good(report(), room=256)
    luns = [data[start : start + 8] for start in range(8, len(data), 8)]
    assert int.from_bytes(data[:4], "big") == 24
    assert luns == [bytes(8), b"\0\7" + bytes(6), b"\x41\x2c" + bytes(6)]
    assert rig.run(report(), room=256, lun=9)[1] == data  # also of a unit that is not there
    assert rig.good(report(select=1), room=256) == bytes(8)
    assert rig.sense(report(select=3), room=256) == INVALID_FIELD
    assert rig.sense(report(15), room=256) == INVALID_FIELD
    other.close()


def test_a_unit_that_is_not_there_says_so(rig: Rig) -> None:
    assert rig.run(bytes((0x12, 0, 0, 0, 36, 0)), room=36, lun=1)[1][0] == 0x7F
    assert rig.sense(bytes(6), lun=1) == (5, 0x25, 0)
    assert rig.sense(bytes((0x12, 1, 0, 0, 36, 0)), room=36, lun=1) == (5, 0x25, 0)
    assert rig.run(bytes((0x03, 0, 0, 0, 18, 0)), room=18, lun=1)[1][12] == 0x25
    with pytest.raises(NoTargetError):
        rig.bus.start((1, 0), bytes(6), [], [])


def test_a_change_of_units_is_an_attention_of_the_others(rig: Rig, tmp_path: Path) -> None:
    changed = (6, 0x3F, 0x0E)
    rig.bus.add((0, 1), ScsiDisk(rig.disk, "x"))
    rig.bus.add((0, 2), ScsiDisk(rig.disk, "y"))
    assert rig.sense(bytes(6)) == changed
    rig.good(bytes(6))
    rig.bus.remove((0, 1))
    assert rig.good(report(64), room=64)  # which tells it as well
    rig.good(bytes(6))
    with pytest.raises(KeyError):
        rig.bus.remove((0, 1))


# --- anything ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode", [0x01, 0x04, 0x15, 0x16, 0x1D, 0x2E, 0x3B, 0x55, 0x5E, 0x7F, 0x89, 0xA3, 0xFF]
)
def test_an_unknown_command_is_refused(rig: Rig, opcode: int) -> None:
    assert rig.sense(bytes((opcode, *bytes(31)))) == INVALID_OPCODE


def test_a_command_with_aca_or_cut_short_is_refused(rig: Rig) -> None:
    assert rig.sense(bytes((0, 0, 0, 0, 0, 4))) == INVALID_FIELD
    assert rig.sense(read(10, 0, 1)[:9], room=512) == INVALID_FIELD


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opcode=st.one_of(
        st.sampled_from([0, 3, 8, 0xA, 0x12, 0x1A, 0x1B, 0x25, 0x28, 0x2A, 0x2F, 0x35, 0x41, 0x42, 0x5A])
        | st.sampled_from([0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA, 0xAF]),
        st.integers(0, 255),
    ),
    fields=st.lists(st.one_of(st.just(0), st.integers(0, 255)), min_size=0, max_size=31),
    data=st.one_of(st.binary(max_size=600), st.just(b"")),
    room=st.integers(0, 2000),
    lun=st.integers(0, 1),
)
def test_no_command_does_more_than_fail(
    *, rig: Rig, opcode: int, fields: list[int], data: bytes, room: int, lun: int
) -> None:
    size = os.path.getsize(rig.path)
    try:
        reply, _ = rig.run(bytes((opcode, *fields)), data, room, lun)
    except OverrunError:
        return
    assert reply.status in (GOOD, CHECK)
    assert (reply.status == CHECK) == (len(reply.sense) == 18)
    assert 0 <= reply.transferred <= max(len(data), room)
    assert os.path.getsize(rig.path) == size
