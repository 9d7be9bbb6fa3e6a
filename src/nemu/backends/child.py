"""Programs that nemu starts and that end with it: storage daemons, file system daemons.

A child is killed by the kernel when nemu's main thread ends (PR_SET_PDEATHSIG), so also after a SIGKILL.
What it writes to standard error is read as it comes, the end of it kept to explain why it ended.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from nemu.errors import HostError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTS, STARTS_SECONDS = 5, 60.0  # more in that time, and it is given up
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_SAID, _LINE = 4096, 300  # bytes of what it said last, characters of it in a message
_FIRST_FD = 3

_libc = ctypes.CDLL(None, use_errno=True)


class Watcher(Protocol):
    """What a Child wants of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, fd: int) -> None: ...


class Child:
    """``argv[0]`` with ``argv``, not yet running; ``fds`` become its descriptors 3, 4, ...

    ``name`` is the option that wants it, for messages; ``package`` is what to install when it is missing.
    ``prepare`` is called in the new process just before it becomes the program, and may raise OSError.
    All calls in the main thread: when the thread that started it ends, the child ends.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        fds: Sequence[int],
        loop: Watcher,
        *,
        package: str,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.pidfd = -1  # readable when it has ended; -1 when it was not started
        self._argv = list(argv)
        self._fds = list(fds)
        self._loop = loop
        self._package = package
        self._prepare = prepare
        self._pid = 0
        self._stderr = -1
        self._said = b""
        self._starts: deque[float] = deque(maxlen=STARTS)

    def start(self) -> None:
        """Start it, ending one that runs.  Raises HostError: it is missing, or was started too often."""
        self.kill()
        now = time.monotonic()
        if len(self._starts) == STARTS and now - self._starts[0] < STARTS_SECONDS:
            raise HostError(f"{self._argv[0]} has ended {STARTS} times in a minute ({self.last_words()})")
        self._starts.append(now)
        self._said = b""
        program = _find(self._argv[0])
        if not program:
            raise HostError(
                f"{self.name}: {self._argv[0]} is not installed; try: apt install {self._package}"
            )
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stderr, False)
        try:
            parent = os.getpid()
            self._pid = os.fork()
            if self._pid == 0:
                self._become(program, parent, stderr)
        except OSError as error:
            self._close_stderr()
            raise HostError(f"{self.name}: cannot start {program}: {error.strerror}") from error
        finally:
            os.close(stderr)
        self.pidfd = os.pidfd_open(self._pid)
        self._loop.add_reader(self._stderr, self._listen)

    def _become(self, program: str, parent: int, stderr: int) -> None:
        """In the new process: never returns."""
        try:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(127)
            null = os.open(os.devnull, os.O_RDWR)
            beyond = _FIRST_FD + len(self._fds)
            # Out of the way first, so that none of them is overwritten by another.
            sources = [_dup_above(fd, beyond) for fd in (null, null, stderr, *self._fds)]
            for target, source in enumerate(sources):
                os.dup2(source, target)
            os.closerange(beyond, os.sysconf("SC_OPEN_MAX"))
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            self._prepare()
            os.execv(program, self._argv)
        except OSError as error:
            os.write(2, f"{program}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def last_words(self) -> str:
        """The last message that it wrote to standard error, in one line; "" for none.

        A message begins with the program's name where it says that, and loses arguments that it repeats.
        """
        self._listen()
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        name = os.path.basename(self._argv[0])
        starts = [number for number, line in enumerate(lines) if line.startswith(f"{name}: ")]
        last = " ".join(lines[starts[-1] if starts else -1 :])
        for option, value in itertools.pairwise(self._argv):
            last = last.replace(f"{option} {value}: ", "")
        return last[:_LINE]

    def kill(self) -> None:
        """End it at once, if it runs."""
        self._end(signal.SIGKILL, 0.0)

    def close(self) -> None:
        """Ask it to end, wait for GRACE, then end it.  Idempotent."""
        self._end(signal.SIGTERM, GRACE)

    def _end(self, number: signal.Signals, grace: float) -> None:
        if self.pidfd < 0:
            return
        signal.pidfd_send_signal(self.pidfd, number)
        if grace and not self._wait(grace):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.pidfd)
        self.pidfd, self._pid = -1, 0
        self._listen()
        self._close_stderr()

    def _wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _listen(self) -> None:
        if self._stderr < 0:
            return
        try:
            said = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if said:
            self._said = (self._said + said)[-_SAID:]
        else:
            self._close_stderr()

    def _close_stderr(self) -> None:
        if self._stderr >= 0:
            self._loop.remove_reader(self._stderr)
            os.close(self._stderr)
            self._stderr = -1


def _find(program: str) -> str:
    """The path of an executable, by $PATH where it has no slash; "" when there is none."""
    places = [""] if "/" in program else os.get_exec_path()
    paths = (os.path.join(place, program) for place in places)
    return next((path for path in paths if os.access(path, os.X_OK) and os.path.isfile(path)), "")


def _dup_above(fd: int, lowest: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, lowest)
