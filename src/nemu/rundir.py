"""The running virtual machines of a user: one socket each, by name, in a directory of the user's own.

``$XDG_RUNTIME_DIR/nemu`` or, without that variable, ``/run/nemu`` for root and ``/tmp/nemu-UID`` for others,
with mode 0700.  A process that dies leaves its socket; whoever looks next removes it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nemu.errors import ConfigError, HostError

if TYPE_CHECKING:
    from nemu.backends.listener import UnixListener
    from nemu.config import RunOptions

SUFFIX = ".qmp"
OPTION = "--name"


def name_of(options: RunOptions) -> str:
    """What the machine of this process is called."""
    return options.name or f"vm-{os.getpid()}"


def folder() -> str:
    """The directory, whether it is there or not."""
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(base, "nemu")
    return "/run/nemu" if os.geteuid() == 0 else f"/tmp/nemu-{os.geteuid()}"


def path_of(name: str) -> str:
    """The socket of the machine ``name``."""
    return os.path.join(folder(), name + SUFFIX)


def claim(name: str) -> UnixListener:
    """Listen as ``name``.  Raises ConfigError where a running machine has it, HostError without a place."""
    from nemu.backends.listener import UnixListener, is_served

    path = path_of(name)
    with _locked(create=True):
        if os.path.exists(path) and is_served(path):
            raise ConfigError(OPTION, name, "a running machine has this name (nemu ps shows it)")
        return UnixListener(path, OPTION, name)


def names() -> list[str]:
    """The machines that run, sorted.  Sockets that nobody serves are removed.  Raises HostError."""
    from nemu.backends.listener import is_served

    if not os.path.isdir(folder()):
        return []
    with _locked():
        found = sorted(file.removesuffix(SUFFIX) for file in os.listdir(folder()) if file.endswith(SUFFIX))
        alive = [name for name in found if is_served(path_of(name))]
        for name in set(found) - set(alive):
            os.unlink(path_of(name))
    return alive


@contextmanager
def _locked(*, create: bool = False) -> Iterator[None]:
    """Have the directory alone: between the bind and the listen of a new socket it looks like a stale one."""
    path = folder()
    try:
        if create:
            os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot use the run directory {path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        # In /tmp another user may have made it first, to get at the sockets in it.
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise HostError(f"cannot use the run directory {path}: it must be yours alone, with mode 0700")
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
