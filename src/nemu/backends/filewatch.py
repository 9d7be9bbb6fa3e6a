"""Files that others change under us: inotify(7), for who has them mapped."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

_IN_MODIFY = 2  # sys/inotify.h; a truncation is one, a store through a mapping is none
_EVENTS = 4096  # bytes

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """``fileno`` is readable once one of the files ``fds`` was written or truncated by a system call.

    Where the host gives no watch (it has a limit for each user), it never is.
    """

    def __init__(self, fds: Iterable[int]) -> None:
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for fd in fds:
            _libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _IN_MODIFY)

    def fileno(self) -> int:
        return self._fd

    def clear(self) -> None:
        """Wait for the next change."""
        try:
            os.read(self._fd, _EVENTS)
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
