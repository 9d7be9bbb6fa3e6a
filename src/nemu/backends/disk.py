"""Raw disk images and block devices of the host, and the threads that wait for them.

A disk is opened and locked once in a run; the machine's virtio-blk device, which is built anew
at each reboot, uses it from then on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
from _queue import SimpleQueue  # what ``queue`` exports, without its import time
from collections import deque
from collections.abc import Callable, Sequence

from nemu.errors import ConfigError

SECTOR = 512
WORKERS = 4
BLKGETSIZE64 = 0x80081272  # linux/fs.h
# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
IOV_MAX = 1024  # limits.h: buffers in one preadv or pwritev
CHUNK = 1 << 20  # bytes of a pattern written at once
# What devices ask for at most in one request, in bytes, so that none keeps a worker for long.
MAX_DISCARD = 1 << 30
MAX_ZEROES = 64 << 20
# A copy out of the page cache or into it takes less than waking a worker; a long one would hold up the loop.
MAX_CACHED = 128 * 1024

Job = Callable[[], None]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2).  Raises OSError."""
    while _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _open(path: str, readonly: bool, option: str) -> int:
    try:
        return os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ConfigError(option, path, "no such file") from error
    except OSError as error:
        problem = f"cannot open it for {'reading' if readonly else 'reading and writing'}: {error.strerror}"
        if (
            not readonly
            and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
            and os.access(path, os.R_OK)
        ):
            problem += " (readonly=on would do)"
        raise ConfigError(option, path, problem) from error


def _size(fd: int, path: str, option: str) -> int:
    """Bytes of the image or block device ``fd``.  Raises ConfigError for what is no disk."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        (size,) = struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))
    elif stat.S_ISREG(status.st_mode):
        size = status.st_size
    else:
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a block device"
        raise ConfigError(option, path, f"is {kind}, must be a raw image or a block device")
    if size == 0 or size % SECTOR:
        raise ConfigError(option, path, f"has {size} bytes, must be a multiple of {SECTOR} and not empty")
    return int(size)


def _lock(fd: int, readonly: bool, path: str, option: str) -> None:
    """Share the disk with other readers, or have it alone.  flock, since it belongs to this very open file:
    it also tells a disk that is given twice to the same process, and goes with the descriptor."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        use = "for writing" if readonly else "already"
        problem = f"is in use {use}; a disk that is used twice must be readonly=on each time"
        raise ConfigError(option, path, problem) from error
    except OSError:
        pass  # a file system without locks (some network ones): nothing to be had


class Disk:
    """A raw image or block device, read and written at byte offsets by its own threads.

    ``path`` must exist, have a size that is a multiple of 512 bytes, and not be in use in a way
    that conflicts.  Raises ConfigError.  ``size`` is in bytes and does not change.
    """

    def __init__(self, path: str, readonly: bool = False, option: str = "--disk") -> None:
        self.path = path
        self.readonly = readonly
        self.fd = _open(path, readonly, option)
        try:
            self.size = _size(self.fd, path, option)
            _lock(self.fd, readonly, path, option)
        except BaseException:
            os.close(self.fd)
            raise
        self._waiting: set[Callable[..., int]] = set()  # calls that always may, on this file system
        self._handover = threading.Lock()  # of the next two: a job finds an idle worker or waits for one
        self._jobs: deque[Job | None] = deque()
        self._idle: list[SimpleQueue[Job | None]] = []
        self._threads: list[threading.Thread] = []

    def submit(self, job: Job) -> None:
        """Run ``job`` in a worker thread; it must not raise.  The threads start with the first job."""
        if not self._threads:
            for number in range(WORKERS):
                thread = threading.Thread(target=self._work, name=f"disk-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._put(job)

    def drain(self) -> None:
        """Wait until every job is done.  Not with a lock held that a job takes."""
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()  # the next job starts new ones

    def close(self) -> None:
        """Drain, then close.  Idempotent."""
        self.drain()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _put(self, job: Job | None) -> None:
        """To the worker that became idle last.  A queue for all of them would wake a second one each time."""
        with self._handover:
            idle = self._idle.pop() if self._idle else None
            if idle is None:
                self._jobs.append(job)
        if idle is not None:
            idle.put(job)

    def _work(self) -> None:
        mine: SimpleQueue[Job | None] = SimpleQueue()
        while (job := self._next(mine)) is not None:
            job()
            del job  # its views of guest RAM must not live until the next one comes

    def _next(self, mine: SimpleQueue[Job | None]) -> Job | None:
        with self._handover:
            if self._jobs:
                return self._jobs.popleft()
            self._idle.append(mine)
        return mine.get()

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset``.  Raises OSError; EIO where the image has become shorter."""
        self._transfer(lambda part, at: os.preadv(self.fd, part, at), views, offset)

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Fill ``views`` (at most IOV_MAX) without waiting; False when the host's page cache lacks any of it.

        Then, and on any error, nothing is promised about ``views``: ``read`` is to be used.
        """
        return self._at_once(os.preadv, views, offset)

    def write_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Store ``views`` (at most IOV_MAX) in the host's page cache without waiting; False where that cannot
        be, with nothing promised about that part of the disk: ``write`` is to be used."""
        return self._at_once(os.pwritev, views, offset)

    def _at_once(
        self,
        call: Callable[[int, Sequence[memoryview], int, int], int],
        views: Sequence[memoryview],
        offset: int,
    ) -> bool:
        if call in self._waiting:
            return False
        try:
            return call(self.fd, views, offset, os.RWF_NOWAIT) == sum(map(len, views))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # not on this file system: ask no more
                self._waiting.add(call)
            return False

    def write(self, views: Sequence[memoryview], offset: int, *, sync: bool = False) -> None:
        """Store ``views`` at ``offset``, on stable storage when ``sync``.  Raises OSError."""
        flags = os.RWF_DSYNC if sync else 0
        self._transfer(lambda part, at: os.pwritev(self.fd, part, at, flags), views, offset)

    def flush(self) -> None:
        """What was written is on stable storage afterwards.  Raises OSError."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """The host may forget the range.  Raises OSError (EOPNOTSUPP where it cannot)."""
        fallocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """The range reads as zeroes afterwards, deallocated if ``unmap`` and possible.  Raises OSError."""
        modes = [FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE]
        if unmap:
            modes.insert(0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
        for mode in modes:
            try:
                fallocate(self.fd, mode, offset, length)
                return
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                    raise
        self.write_same(bytes(SECTOR), offset, length)

    def write_same(self, block: bytes, offset: int, length: int) -> None:
        """The range is ``block`` again and again; ``length`` is a multiple of its size.  Raises OSError."""
        blocks = memoryview(block * (min(length, CHUNK) // len(block)))
        for done in range(0, length, len(blocks)):
            self.write([blocks[: length - done]], offset + done)

    @staticmethod
    def _transfer(
        call: Callable[[Sequence[memoryview], int], int], views: Sequence[memoryview], offset: int
    ) -> None:
        """Repeat ``call`` until all of ``views`` is done: the kernel moves less than 2 GiB at once."""
        rest = list(views)
        while rest:
            moved = call(rest[:IOV_MAX], offset)
            if moved == sum(map(len, rest)):
                return
            if moved == 0:
                raise OSError(errno.EIO, "the disk has become shorter")
            offset += moved
            while rest and moved >= len(rest[0]):
                moved -= len(rest.pop(0))
            if moved:
                rest[0] = rest[0][moved:]
