"""Raw images of the host: opening, locking, moving data, errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from nemu.backends import disk as disk_module
from nemu.backends.disk import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, WORKERS, Disk
from nemu.errors import ConfigError

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Disk]:
    opened = Disk(str(image))
    yield opened
    opened.close()


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def test_data_is_scattered_and_gathered_at_byte_offsets(disk: Disk, image: Path) -> None:
    parts = views(512, 1024, 512)
    disk.read(parts, 4096)
    assert b"".join(parts) == image.read_bytes()[4096 : 4096 + 2048]
    disk.write([memoryview(b"a" * 512), memoryview(b"b" * 512)], 1024)
    assert image.read_bytes()[1024:2048] == b"a" * 512 + b"b" * 512


def test_more_buffers_than_one_system_call_takes(disk: Disk, image: Path) -> None:
    parts = views(*[128] * 3000)
    disk.read(parts, 512)
    assert b"".join(parts) == image.read_bytes()[512 : 512 + 3000 * 128]


def test_short_transfers_are_continued_in_the_middle_of_a_buffer(
    disk: Disk, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", short)
    parts = views(512, 300, 212)
    disk.read(parts, 0)
    assert b"".join(parts) == image.read_bytes()[:1024]


def test_a_read_that_would_wait_or_comes_short_is_left_to_a_worker(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[int | OSError] = [100, BlockingIOError(), OSError(errno.EIO, "no"), 512]
    real = partial(replay, results)
    for call, method in (("preadv", disk.read_cached), ("pwritev", disk.write_cached)):
        monkeypatch.setattr(os, call, real)
        assert [method(views(512), 0) for _ in range(4)] == [False, False, False, True]


def replay(results: list[int | OSError], *arguments: object) -> int:
    """A system call that gives each of ``results`` in turn, and then from the first one on again."""
    assert arguments[3:] == (os.RWF_NOWAIT,)
    result = results.pop(0)
    results.append(result)
    if isinstance(result, OSError):
        raise result
    return result


def test_a_file_system_that_always_waits_is_asked_once(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[int | OSError] = [OSError(errno.EOPNOTSUPP, "no"), 512]
    monkeypatch.setattr(os, "pwritev", partial(replay, results))
    assert not any(disk.write_cached(views(512), 0) for _ in range(3))
    assert results == [512, results[1]], "one call"
    monkeypatch.setattr(os, "preadv", lambda *_: 512)
    assert disk.read_cached(views(512), 0), "reads are another matter"


def test_data_is_written_without_waiting_or_not_at_all(disk: Disk, image: Path) -> None:
    before = image.read_bytes()
    written = disk.write_cached([memoryview(b"a" * 512), memoryview(b"b" * 512)], 1024)
    after = b"a" * 512 + b"b" * 512 if written else before[1024:2048]
    assert image.read_bytes() == before[:1024] + after + before[2048:]


def test_an_image_cut_short_behind_our_back_is_an_error_and_not_a_loop(disk: Disk, image: Path) -> None:
    os.truncate(image, 4096)
    with pytest.raises(OSError, match="shorter"):
        disk.read(views(1024), 3584)
    assert disk.size == MIB


def test_synchronous_writes_ask_the_kernel_for_it(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    flags_seen: list[int] = []

    def pwritev(_fd: int, buffers: Sequence[memoryview], _offset: int, flags: int) -> int:
        flags_seen.append(flags)
        return sum(map(len, buffers))

    monkeypatch.setattr(os, "pwritev", pwritev)
    disk.write([memoryview(bytes(512))], 0)
    disk.write([memoryview(bytes(512))], 0, sync=True)
    assert flags_seen == [0, os.RWF_DSYNC]


def test_discard_frees_blocks_of_the_image(disk: Disk, image: Path) -> None:
    os.fsync(disk.fd)
    before = image.stat().st_blocks
    try:
        disk.discard(0, MIB // 2)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system cannot punch holes")
    assert image.stat().st_blocks < before
    assert image.read_bytes()[: MIB // 2] == bytes(MIB // 2)
    assert image.stat().st_size == MIB


@pytest.mark.parametrize("unmap", [False, True])
def test_written_zeroes_are_zeroes_and_nothing_else_changes(disk: Disk, image: Path, unmap: bool) -> None:
    before = image.read_bytes()
    disk.write_zeroes(4096, 512 * 3, unmap=unmap)
    assert image.read_bytes() == before[:4096] + bytes(1536) + before[4096 + 1536 :]


def test_zeroes_are_written_where_the_file_system_has_no_fallocate(
    disk: Disk, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fallocate(_fd: int, mode: int, _offset: int, _length: int) -> None:
        tried.append(mode)
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(disk_module, "fallocate", fallocate)
    monkeypatch.setattr(disk_module, "CHUNK", 1000)
    before = image.read_bytes()
    disk.write_zeroes(512, 4096, unmap=True)
    assert image.read_bytes() == before[:512] + bytes(4096) + before[512 + 4096 :]
    keep = FALLOC_FL_KEEP_SIZE
    assert tried == [FALLOC_FL_PUNCH_HOLE | keep, FALLOC_FL_ZERO_RANGE | keep]


def test_a_full_file_system_is_not_mistaken_for_a_missing_feature(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk_module, "fallocate", fallocate)
    with pytest.raises(OSError, match="full"):
        disk.write_zeroes(0, 512, unmap=False)


def test_fallocate_reports_the_errno_of_the_kernel() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError) as caught:
        disk_module.fallocate(writer, FALLOC_FL_KEEP_SIZE, 0, 512)
    assert caught.value.errno == errno.ESPIPE
    os.close(reader)
    os.close(writer)


def test_jobs_run_in_a_few_threads_that_end_with_the_disk(image: Path) -> None:
    before = threading.active_count()
    disk = Disk(str(image))
    assert threading.active_count() == before, "no thread before the first job"
    gate = threading.Barrier(WORKERS + 1)

    def wait_at_gate() -> None:
        gate.wait(5)

    for _ in range(WORKERS):
        disk.submit(wait_at_gate)
    gate.wait(5)  # all of them at the same time
    assert threading.active_count() == before + WORKERS
    disk.close()
    assert threading.active_count() == before
    disk.close()


def test_the_worker_that_became_idle_last_gets_the_next_job(disk: Disk) -> None:
    seen: list[int] = []
    done = threading.Semaphore(0)

    def job() -> None:
        seen.append(threading.get_ident())
        done.release()

    for number in range(20):
        disk.submit(job)
        assert done.acquire(timeout=5)
        wait_until(lambda: len(disk._idle) == WORKERS)
        if number == 0:
            seen.clear()  # the threads were just started
    assert len(set(seen)) == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def refused(path: str | Path, readonly: bool = False) -> str:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        Disk(str(path), readonly)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert str(path) in str(caught.value)
    return caught.value.problem


def test_a_missing_disk_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.img") == "no such file"


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory_is_refused(tmp_path: Path, readonly: bool) -> None:
    assert "directory" in refused(tmp_path, readonly)


def test_a_character_device_and_a_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "neither a file nor a block device" in refused("/dev/null")
    assert "neither a file nor a block device" in refused(tmp_path / "fifo", readonly=True)


@pytest.mark.parametrize("size", [0, 1, 511, 513, MIB + 100])
def test_an_odd_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    assert f"has {size} bytes, must be a multiple of 512" in refused(path)


def test_a_disk_that_may_only_be_read_says_what_would_do(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_as_another_user(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_as_another_user)
    assert "readonly=on would do" in refused(image)
    Disk(str(image), readonly=True).close()


def test_a_read_only_disk_cannot_be_written(image: Path) -> None:
    disk = Disk(str(image), readonly=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.write([memoryview(bytes(512))], 0)
    disk.close()


def test_the_same_image_twice_is_refused_unless_both_only_read(image: Path) -> None:
    writer = Disk(str(image))
    assert "in use already" in refused(image)
    assert "in use for writing" in refused(image, readonly=True)
    writer.close()
    reader = Disk(str(image), readonly=True)
    second = Disk(str(image), readonly=True)
    assert "in use already" in refused(image)
    reader.close()
    second.close()
    Disk(str(image)).close()


def test_an_image_in_use_by_another_process_is_refused_until_that_ends(image: Path) -> None:
    program = (
        "from nemu.backends.disk import Disk\n"
        f"disk = Disk({str(image)!r})\n"
        "print('open', flush=True)\n"
        "input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert other.stdout
    assert other.stdin
    try:
        assert other.stdout.readline() == b"open\n"
        assert "in use" in refused(image)
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    Disk(str(image)).close()


def test_drain_waits_for_every_job_and_the_disk_works_on(disk: Disk) -> None:
    done: list[int] = []

    def job(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    for number in range(8):
        disk.submit(partial(job, number))
    disk.drain()
    assert sorted(done) == list(range(8))
    disk.submit(partial(job, 8))
    disk.drain()
    assert done[-1] == 8
