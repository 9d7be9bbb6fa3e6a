"""virtio-pmem: flushes reach the file, many at once cost one, and wrong requests cost nothing."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends.disk import Disk
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.pmem import VirtioPmem

FLUSH = struct.pack("<I", 0)
OK, EIO = struct.pack("<I", 0), struct.pack("<I", 1)
GPA, SIZE = 4 << 30, 2 << 20


class SlowDisk(Disk):
    """Each flush waits until the test lets it go, and fails if told so."""

    def __init__(self, path: str, readonly: bool = False) -> None:
        super().__init__(path, readonly)
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.flushes = 0
        self.error: OSError | None = None

    def flush(self) -> None:
        self.flushes += 1
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if self.error:
            raise self.error
        super().flush()

    def let(self, count: int) -> None:
        for _ in range(count):
            self.go.release()


class Bench:
    """A device on a slow disk, and its driver."""

    def __init__(self, path: Path, ram: GuestRam, loop: FakeLoop, readonly: bool = False) -> None:
        self.disk = SlowDisk(str(path), readonly)
        self.loop = loop
        self.device = VirtioPmem("virtio-pmem0", self.disk, GPA, loop.lock, loop)
        self.driver = Driver(ram, 64)
        self.transport = FakeTransport()
        self.device.activate(0, (self.driver.queue(),), self.transport)

    def flush(self, count: int = 1) -> None:
        for _ in range(count):
            self.driver.add(readable=[FLUSH], writable=[4])
        self.device.notify(0)

    def answers(self, count: int) -> list[bytes]:
        found: list[bytes] = []

        def enough() -> bool:
            with self.loop.lock:
                found.extend(used.data for used in self.driver.collect())
            return len(found) >= count

        self.loop.until(enough)
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "pmem.img"
    image.write_bytes(bytes(SIZE))
    return image


@pytest.fixture
def bench(path: Path, ram: GuestRam, loop: FakeLoop) -> Iterator[Bench]:
    made = Bench(path, ram, loop)
    yield made
    made.disk.let(100)
    made.disk.close()


def test_the_configuration_says_where_and_how_much(bench: Bench) -> None:
    assert bytes(bench.device.config) == struct.pack("<QQ", GPA, SIZE)
    assert bench.device.device_id == 27


def test_a_flush_is_answered_once_it_is_done(bench: Bench) -> None:
    bench.flush()
    assert bench.disk.begun.acquire(timeout=10)
    assert bench.driver.collect() == []
    bench.disk.let(1)
    assert bench.answers(1) == [OK]
    assert bench.driver.interrupts == 1


def test_requests_that_come_meanwhile_share_the_next_flush(bench: Bench) -> None:
    bench.flush()
    assert bench.disk.begun.acquire(timeout=10)
    bench.flush(5)
    bench.flush(4)
    bench.disk.let(1)
    assert bench.answers(1) == [OK]
    assert bench.disk.begun.acquire(timeout=10)  # what came after the first began needs one of its own
    bench.disk.let(1)
    assert bench.answers(9) == [OK] * 9
    assert bench.disk.flushes == 2


def test_an_error_of_the_host_is_told(bench: Bench) -> None:
    bench.disk.error = OSError(5, "broken")
    bench.disk.let(1)
    bench.flush()
    assert bench.answers(1) == [EIO]
    bench.disk.error = None
    bench.disk.let(1)
    bench.flush()
    assert bench.answers(1) == [OK]


def test_an_unknown_request_is_refused_without_a_flush(bench: Bench) -> None:
    bench.driver.add(readable=[struct.pack("<I", 7)], writable=[4])
    bench.device.notify(0)
    assert bench.answers(1) == [EIO]
    assert bench.disk.flushes == 0


@pytest.mark.parametrize(
    ("readable", "writable"), [([], [4]), ([b"abc"], [4]), ([FLUSH], []), ([FLUSH], [3])]
)
def test_a_malformed_request_stops_the_device(
    bench: Bench, readable: list[bytes], writable: list[int]
) -> None:
    bench.driver.add(readable=readable, writable=writable)
    with pytest.raises(GuestError):
        bench.device.notify(0)


def test_a_reset_waits_for_the_flush_and_answers_nobody(bench: Bench) -> None:
    done: list[bool] = []
    bench.flush(3)
    assert bench.disk.begun.acquire(timeout=10)
    with bench.loop.lock:
        bench.device.deactivate(lambda: done.append(True))
    assert not done
    bench.disk.let(1)
    bench.loop.until(lambda: bool(done))
    assert bench.driver.collect() == []
    bench.device.notify(0)  # late
    bench.device.deactivate(lambda: done.append(True))
    assert len(done) == 2


def test_a_read_only_one_does_not_claim_to_have_stored_anything(
    path: Path, ram: GuestRam, loop: FakeLoop
) -> None:
    bench = Bench(path, ram, loop, readonly=True)
    bench.flush()
    assert bench.answers(1) == [EIO]
    assert bench.disk.flushes == 0
    bench.disk.close()
