"""virtiofsd: how the programs of that name are found, told apart and started.

There are two: of QEMU up to version 7, in C, and its successor in Rust.  Both become what they share: their
root is the shared directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nemu.backends import mounts
from nemu.backends.child import Child, Watcher
from nemu.errors import HostError

PROGRAM = "virtiofsd"
# Nobody types its name, so that distributions keep it out of the PATH.
_PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")
_NO_PROGRAM = "virtiofsd is not installed; try: apt install virtiofsd (on Debian 12 qemu-system-common)"


def find() -> str:
    """Its path, "" when there is none."""
    places = (*os.get_exec_path(), *_PLACES)
    return next((path for place in places if os.access(path := f"{place}/{PROGRAM}", os.X_OK)), "")


def daemon(name: str, show: Callable[[], None], cache: str, listener: int, loop: Watcher) -> Child:
    """A virtiofsd for ``name`` (see Child) that serves what ``show`` mounts (see ``mounts``) to whoever
    connects to ``listener``.  Raises HostError."""
    program = find()
    if not program:
        raise HostError(f"{name}: {_NO_PROGRAM}")
    argv = arguments(program, _help(program), cache, 3, root=os.geteuid() == 0)
    return Child(name, argv, [listener], loop, package=PROGRAM, prepare=show)


def arguments(program: str, usage: str, cache: str, listener: int, *, root: bool) -> list[str]:
    """The command line of the virtiofsd that describes itself in ``usage``, for what is mounted at PLACE.

    ``root``: it may make namespaces of its own; else it is in a user namespace, and changes its root only.
    """
    sandbox = "namespace" if root else "chroot"
    if "--shared-dir" not in usage:
        cache = "none" if cache == "never" else cache
        settings = f"source={mounts.PLACE},cache={cache},sandbox={sandbox},log_level=err"
        return [program, f"--fd={listener}", "-f", "--thread-pool-size=0", "-o", settings]
    argv = [program, f"--fd={listener}", f"--shared-dir={mounts.PLACE}", f"--cache={cache}"]
    argv += [f"--sandbox={sandbox}", "--thread-pool-size=0", "--log-level=error"]
    # An overlay in the guest does not follow mounts below mounts.
    return argv + [word for word in ("--no-announce-submounts",) if word in usage]


def _help(program: str) -> str:
    """What ``program --help`` prints.  Raises HostError."""
    said = os.memfd_create("nemu-virtiofsd-help", os.MFD_CLOEXEC)
    try:
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
        output = [(os.POSIX_SPAWN_DUP2, said, stream) for stream in (1, 2)]
        pid = os.posix_spawn(program, [program, "--help"], os.environ, file_actions=[null, *output])
        os.waitpid(pid, 0)
        return os.pread(said, 1 << 16, 0).decode(errors="replace")
    except OSError as error:
        raise HostError(f"{program}: {error.strerror}") from error
    finally:
        os.close(said)
