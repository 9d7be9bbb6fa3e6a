"""I/O that worker threads of a disk do for a device, and the reset that waits for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from nemu.backends.disk import Disk
from nemu.virtio.device import MachineLock

Io = Callable[[], None]  # raises OSError
Complete = Callable[[OSError | None], None]  # called with the machine lock held


class InFlight:
    """What is under way for one activation of a device.  All calls are made with ``lock`` held."""

    def __init__(self, lock: MachineLock) -> None:
        self._lock = lock
        self._count = 0
        self._done: Callable[[], None] | None = None

    def submit(self, disk: Disk, io: Io, complete: Complete) -> None:
        """Run ``io`` in a worker thread of ``disk``, then ``complete`` with its error, unless it is over."""
        self._count += 1
        disk.submit(lambda: self._work(io, complete))

    def end(self, done: Callable[[], None]) -> None:
        """Begin and complete nothing more; ``done`` is called once nothing is under way, maybe at once."""
        if self._count:
            self._done = done
        else:
            done()

    def _work(self, io: Io, complete: Complete) -> None:
        failure = None
        if self._done is None:  # else nobody waits for it; looked at again below, with the lock
            try:
                io()
            except OSError as error:
                failure = error
            except MemoryError:  # no reason to lose a worker
                failure = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        with self._lock:
            self._count -= 1
            if self._done is None:
                complete(failure)
            elif self._count == 0:
                self._done()
