"""The block device on a real image file, with host errors injected."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import Driver, FakeTransport, Used
from fakes.loop import FakeLoop
from nemu.backends.disk import Disk
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio import blk
from nemu.virtio.blk import S_IOERR, S_OK, S_UNSUPP, VirtioBlk

SECTORS = 64
QUEUE = 32
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13


class Rig:
    """An active disk; ``run`` waits until the device has completed what was asked."""

    def __init__(
        self, ram: GuestRam, path: Path, *, readonly: bool = False, features: int | None = None
    ) -> None:
        self.path = path
        self.loop = FakeLoop()
        self.disk = Disk(str(path), readonly)
        self.device = VirtioBlk("virtio-blk0", self.disk, self.loop.lock, self.loop, serial="nemu-0001")
        self.driver = Driver(ram, QUEUE)
        self.transport = FakeTransport()
        self.features = self.device.features if features is None else features
        self.device.activate(self.features, (self.driver.queue(),), self.transport)

    def ask(self, kind: int, sector: int, data: bytes = b"", room: int = 0, split: bool = False) -> None:
        header = struct.pack("<IIQ", kind, 0, sector)
        readable = [header + data] if split else [part for part in (header, data) if part]
        self.driver.add(readable, [room + 1] if split else [size for size in (room, 1) if size])

    def run(self, count: int = 1) -> list[Used]:
        self.device.notify(0)
        result: list[Used] = []

        def collected() -> bool:
            with self.loop.lock:
                result.extend(self.driver.collect())
            return len(result) >= count

        self.loop.until(collected)
        return result

    def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> tuple[int, int, bytes]:
        """(status, written, data) of one request."""
        self.ask(kind, sector, data, room)
        (used,) = self.run()
        return used.data[-1], used.written, used.data[:-1]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.fixture
def rig(ram: GuestRam, image: Path) -> Iterator[Rig]:
    made = Rig(ram, image)
    yield made
    made.disk.close()


def test_a_read_moves_the_image_into_guest_ram(rig: Rig, image: Path) -> None:
    assert rig.request(IN, 3, room=1024) == (S_OK, 1025, image.read_bytes()[3 * 512 : 5 * 512])


def test_a_write_moves_guest_ram_into_the_image(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    assert rig.request(OUT, 62, data=b"x" * 1024) == (S_OK, 1, b"")
    assert image.read_bytes() == before[: 62 * 512] + b"x" * 1024


def test_header_data_and_status_may_lie_in_any_descriptors(rig: Rig, image: Path) -> None:
    header = struct.pack("<IIQ", OUT, 0, 1)
    rig.driver.add([header[:5], header[5:] + b"q" * 100, b"q" * 412], [1])
    rig.driver.add([struct.pack("<IIQ", IN, 0, 1)], [100, 413])
    first, second = rig.run(2)
    assert image.read_bytes()[512:1024] == b"q" * 512
    assert {first.data[-1], second.data[-1]} == {S_OK}


@pytest.mark.parametrize(
    ("kind", "sector", "sectors"),
    [(IN, SECTORS, 1), (IN, SECTORS - 1, 2), (OUT, SECTORS, 1), (IN, (1 << 64) - 1, 1), (OUT, 1 << 55, 1)],
)
def test_accesses_beyond_the_capacity_are_errors(
    rig: Rig, image: Path, kind: int, sector: int, sectors: int
) -> None:
    before = image.read_bytes()
    data = b"z" * (512 * sectors) if kind == OUT else b""
    status, written, _ = rig.request(kind, sector, data, 0 if kind == OUT else 512 * sectors)
    assert (status, written) == (S_IOERR, 1)
    assert image.read_bytes() == before


@pytest.mark.parametrize("kind", [IN, OUT])
def test_lengths_that_are_no_whole_sectors_are_errors(rig: Rig, kind: int) -> None:
    data, room = (b"z" * 100, 0) if kind == OUT else (b"", 100)
    assert rig.request(kind, 0, data, room)[0] == S_IOERR


def test_a_read_only_disk_refuses_every_kind_of_write(ram: GuestRam, image: Path) -> None:
    rig = Rig(ram, image, readonly=True)
    assert rig.device.features & blk.F_RO
    assert not rig.device.features & (blk.F_DISCARD | blk.F_WRITE_ZEROES)
    before = image.read_bytes()
    segment = struct.pack("<QII", 0, 8, 0)
    assert rig.request(OUT, 0, data=b"x" * 512)[0] == S_IOERR
    assert rig.request(DISCARD, 0, data=segment)[0] == S_IOERR
    assert rig.request(WRITE_ZEROES, 0, data=segment)[0] == S_IOERR
    assert rig.request(FLUSH)[0] == S_OK
    assert rig.request(IN, 0, room=512)[0] == S_OK
    assert image.read_bytes() == before
    rig.disk.close()


def test_flush_reaches_stable_storage(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert rig.request(FLUSH) == (S_OK, 1, b"")
    assert synced == [rig.disk.fd]


def test_without_flush_every_write_is_stable(
    ram: GuestRam, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(ram, image, features=0)
    seen: list[int] = []
    real = os.pwritev

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        seen.append(flags)
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", pwritev)
    assert rig.request(OUT, 0, data=bytes(512))[0] == S_OK
    assert seen == [os.RWF_DSYNC]
    rig.disk.close()


def test_the_serial_number_is_padded_with_zeroes(rig: Rig) -> None:
    assert rig.request(GET_ID, room=20) == (S_OK, 21, b"nemu-0001".ljust(20, b"\0"))


def test_an_unknown_request_is_unsupported(rig: Rig) -> None:
    assert rig.request(99, room=512)[:2] == (S_UNSUPP, 1)


def test_discard_and_write_zeroes_make_zeroes(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    segments = struct.pack("<QII", 8, 8, 0) + struct.pack("<QII", 24, 8, 0)
    status = rig.request(DISCARD, data=segments)[0]
    assert status in {S_OK, S_UNSUPP}  # as the file system under the tests can
    if status == S_OK:
        expected = bytearray(before)
        expected[8 * 512 : 16 * 512] = expected[24 * 512 : 32 * 512] = bytes(8 * 512)
        assert image.read_bytes() == expected
    assert rig.request(WRITE_ZEROES, data=struct.pack("<QII", 40, 3, 1))[0] == S_OK
    assert image.read_bytes()[40 * 512 : 43 * 512] == bytes(3 * 512)
    assert image.read_bytes()[43 * 512 :] == before[43 * 512 :]


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (DISCARD, struct.pack("<QII", 0, 8, 1), S_UNSUPP),
        (DISCARD, struct.pack("<QII", 0, 8, 2), S_UNSUPP),
        (WRITE_ZEROES, struct.pack("<QII", 0, 8, 2), S_UNSUPP),
        (DISCARD, struct.pack("<QII", SECTORS, 1, 0), S_IOERR),
        (DISCARD, struct.pack("<QII", SECTORS - 1, 2, 0), S_IOERR),
        (DISCARD, struct.pack("<QII", (1 << 64) - 1, 1, 0), S_IOERR),
        (DISCARD, struct.pack("<QII", 0, 0, 0), S_IOERR),
        (DISCARD, struct.pack("<QII", 0, 1, 0) * 17, S_IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 0, 1, 0) * 2, S_IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 0, 0xFFFF_FFFF, 0), S_IOERR),
        (DISCARD, b"", S_IOERR),
        (DISCARD, b"short", S_IOERR),
    ],
)
def test_bad_segments_are_refused_and_change_nothing(
    rig: Rig, image: Path, kind: int, data: bytes, status: int
) -> None:
    before = image.read_bytes()
    assert rig.request(kind, data=data)[0] == status
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("call", "kind", "data", "room"),
    [
        ("preadv", IN, b"", 512),
        ("pwritev", OUT, bytes(512), 0),
        ("fdatasync", FLUSH, b"", 0),
    ],
)
def test_an_io_error_of_the_host_reaches_the_guest_as_one(
    *, rig: Rig, monkeypatch: pytest.MonkeyPatch, call: str, kind: int, data: bytes, room: int
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        assert rig.request(kind, 0, data, room)[:2] == (S_IOERR, 1)
    assert rig.request(kind, 0, data, room)[0] == S_OK, "and the next one works again"


def test_an_image_cut_short_is_an_error_of_the_request(rig: Rig, image: Path) -> None:
    os.truncate(image, 512)
    assert rig.request(IN, 1, room=512)[0] == S_IOERR


def test_a_discard_the_file_system_cannot_do_is_unsupported(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("nemu.backends.disk.fallocate", fails)
    assert rig.request(DISCARD, data=struct.pack("<QII", 0, 8, 0))[0] == S_UNSUPP


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([], [513]), ([b"short"], [513]), ([struct.pack("<IIQ", IN, 0, 0)], [])],
)
def test_requests_without_header_or_status_stop_the_device(
    rig: Rig, readable: list[bytes], writable: list[int]
) -> None:
    rig.driver.add(readable, writable)
    with pytest.raises(GuestError, match="header"):
        rig.device.notify(0)


def test_what_the_page_cache_has_needs_no_thread(rig: Rig, image: Path) -> None:
    if not rig.disk.read_cached([memoryview(bytearray(512))], 0):
        pytest.skip("this file system cannot read without waiting")
    threads = threading.active_count()
    for sector in range(5):
        rig.ask(IN, sector, room=512)
    rig.device.notify(0)
    assert [used.data[:512] for used in rig.driver.collect()] == [
        image.read_bytes()[sector * 512 :][:512] for sector in range(5)
    ]
    assert rig.driver.interrupts == 1
    assert threading.active_count() == threads


class Gate:
    """Holds the workers inside preadv until ``open``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        real = os.preadv

        def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
            if flags & os.RWF_NOWAIT:
                raise BlockingIOError
            self.entered.release()
            assert self._open.wait(10)
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)

    def open(self) -> None:
        self._open.set()


def test_a_reset_waits_for_io_in_flight_and_completes_nothing(
    rig: Rig, ram: GuestRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    for _ in range(7):  # more than there are workers, so that some have not begun
        rig.ask(IN, 0, room=512)
    rig.device.notify(0)
    for _ in range(4):
        assert gate.entered.acquire(timeout=5)
    done: list[bool] = []
    held: list[bool] = []

    def is_done() -> None:
        done.append(True)
        # RLock._is_owned is what threading.Condition itself relies on.
        held.append(rig.loop.lock._is_owned())  # type: ignore[attr-defined]

    with rig.loop.lock:
        rig.device.deactivate(is_done)
        assert done == []
    gate.open()
    rig.loop.until(lambda: bool(done))
    assert done == held == [True]
    assert rig.driver.collect() == []
    assert not gate.entered.acquire(blocking=False), "what had not begun is not begun any more"


def test_after_a_reset_the_device_works_again(rig: Rig, ram: GuestRam, image: Path) -> None:
    done: list[bool] = []
    rig.device.deactivate(lambda: done.append(True))
    rig.device.deactivate(lambda: done.append(True))
    assert done == [True, True]
    rig.device.notify(0)
    ram.write(rig.driver.desc, bytes(0x400))
    rig.driver = Driver(ram, QUEUE)
    rig.device.activate(rig.features, (rig.driver.queue(),), rig.transport)
    assert rig.request(IN, 0, room=512)[2] == image.read_bytes()[:512]


def test_requests_complete_in_parallel_with_one_interrupt_or_more(rig: Rig, image: Path) -> None:
    for sector in range(8):
        rig.ask(IN, sector, room=512)
    used = rig.run(8)
    content = image.read_bytes()
    assert sorted(u.data[:512] for u in used) == sorted(content[n * 512 : n * 512 + 512] for n in range(8))
    assert 1 <= rig.driver.interrupts <= 8


def test_the_configuration_space_says_what_the_disk_is(rig: Rig) -> None:
    config = bytes(rig.device.config)
    assert struct.unpack_from("<Q", config, 0) == (SECTORS,)
    assert struct.unpack_from("<I", config, 12) == (254,)  # seg_max
    assert struct.unpack_from("<I", config, 20) == (512,)  # blk_size
    assert config[24] == 3  # physical_block_exp
    assert struct.unpack_from("<H", config, 34) == (1,)  # num_queues
    assert struct.unpack_from("<III", config, 36) == (1 << 21, 16, 1)  # discard
    assert struct.unpack_from("<II", config, 48) == (1 << 17, 1)  # write zeroes
    assert config[56] == 1  # write_zeroes_may_unmap


def test_each_of_several_queues_serves_its_own_driver(ram: GuestRam, image: Path) -> None:
    disk, loop = Disk(str(image)), FakeLoop()
    device = VirtioBlk("virtio-blk0", disk, loop.lock, loop, queues=9)
    assert len(device.queue_sizes) == 4
    drivers = [Driver(ram, 8, base=0x10000 + n * 0x40000, end=0x50000 + n * 0x40000) for n in range(3)]
    device.activate(device.features, (*[d.queue() for d in drivers], None), FakeTransport())
    for number, driver in enumerate(drivers):
        driver.add([struct.pack("<IIQ", IN, 0, number)], [512, 1])
        device.notify(number)
    device.notify(3)  # not enabled
    device.notify(7)  # does not exist
    for number, driver in enumerate(drivers):
        used: list[Used] = []

        def collected(into: list[Used] = used, of: Driver = driver) -> bool:
            with loop.lock:
                into.extend(of.collect())
            return bool(into)

        loop.until(collected)
        assert used[0].data[:512] == image.read_bytes()[number * 512 :][:512]
    disk.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.one_of(
        st.sampled_from([IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES]), st.integers(0, 2**32 - 1)
    ),
    sector=st.one_of(st.integers(0, SECTORS), st.integers(0, 2**64 - 1)),
    data=st.binary(max_size=1100),
    cut=st.integers(0, 16),
    rooms=st.lists(st.integers(1, 700), max_size=3),
)
def test_no_request_is_more_than_an_error_for_the_guest(
    rig: Rig, ram: GuestRam, *, kind: int, sector: int, data: bytes, cut: int, rooms: list[int]
) -> None:
    size = rig.disk.size
    rig.device.deactivate(lambda: None)
    rig.driver = Driver(ram, QUEUE)
    ram.write(rig.driver.desc, bytes(0x1000))
    rig.device.activate(rig.features, (rig.driver.queue(),), rig.transport)
    packed = struct.pack("<IIQ", kind, 0, sector) + data
    readable = [part for part in (packed[:cut], packed[cut:]) if part]
    rig.driver.add(readable, rooms)
    try:
        (used,) = rig.run()
    except GuestError:
        assert not rooms
        return
    assert 1 <= used.written <= len(used.data)
    assert used.data[-1] in {S_OK, S_IOERR, S_UNSUPP}
    assert os.fstat(rig.disk.fd).st_size == size
