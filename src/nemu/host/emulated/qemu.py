"""The QEMU process that emulates the host, and the few QMP commands that it is asked."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from nemu.errors import HostError
from nemu.qmp.client import ClosedError, QmpClient
from nemu.qmp.errors import QmpError

PACKAGE = "qemu-system-x86"
PROGRAM = "qemu-system-x86_64"
_PR_SET_PDEATHSIG = 1


def command(progress: Callable[[str], None]) -> list[str]:
    """How QEMU is started here: this machine's own, else out of its distribution package."""
    from nemu.host import packages

    argv = packages.program(PROGRAM, PACKAGE, progress)
    if len(argv) > 1:  # out of the cache: its modules and its firmware lie beside it
        usr = argv[-1].removesuffix(f"/bin/{PROGRAM}")
        modules = f"QEMU_MODULE_DIR={usr}/lib/x86_64-linux-gnu/qemu"
        argv = ["/usr/bin/env", modules, *argv, "-L", f"{usr}/share/qemu", "-L", f"{usr}/share/seabios"]
    return argv


def identity(argv: list[str]) -> str:
    """What tells one QEMU binary from another without starting it."""
    found = os.stat(next(word for word in reversed(argv) if word.endswith(PROGRAM)))
    return f"{argv}{found.st_size}{found.st_mtime_ns}"


class Qemu:
    """A running QEMU that dies with this process.  ``link`` is our end of the agent's port."""

    def __init__(self, argv: list[str], machine: list[str], inherit: tuple[int, ...] = ()) -> None:
        qmp, qmp_theirs = socket.socketpair()
        link, link_theirs = socket.socketpair()
        fds = (qmp_theirs.fileno(), link_theirs.fileno())
        libc = ctypes.CDLL(None, use_errno=True)
        parent = os.getpid()

        def tie_to_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        self.process = subprocess.Popen(
            [
                *argv,
                *machine,
                *("-chardev", f"socket,id=qmp,fd={fds[0]}", "-mon", "chardev=qmp,mode=control"),
                *("-chardev", f"socket,id=agent,fd={fds[1]}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(*fds, *inherit),
            start_new_session=True,
            preexec_fn=tie_to_parent,  # noqa: PLW1509 - one system call, prepared above
        )
        qmp_theirs.close()
        link_theirs.close()
        self.link = link
        try:
            self._qmp = QmpClient(qmp)
        except ClosedError:
            raise HostError(f"the emulated host ended: {self.failure()}") from None

    def execute(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result.  Raises HostError with QEMU's words."""
        return self._ask(lambda: self._qmp.execute(name, arguments))

    def hand_over(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file, which it then knows as ``fd:name``."""
        self._ask(lambda: self._qmp.execute("getfd", {"fdname": name}, [descriptor]))

    def wait_event(self, name: str) -> None:
        """Wait until QEMU has told of the event ``name``; each one counts once."""
        self._ask(lambda: self._qmp.wait_event(name))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except QmpError as error:
            raise HostError(f"the emulated host: {error}") from None
        except ClosedError:
            raise HostError(f"the emulated host ended: {self.failure()}") from None

    def failure(self) -> str:
        """The last line that QEMU printed, once it has ended."""
        assert self.process.stdout is not None
        text = self.process.stdout.read().decode(errors="replace").strip()
        return text.splitlines()[-1] if text else f"QEMU ended with status {self.process.wait()}"

    def close(self) -> None:
        """End it; nothing stays behind."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._qmp.close()
        self.link.close()
