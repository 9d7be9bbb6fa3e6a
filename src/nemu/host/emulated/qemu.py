"""The QEMU process that emulates the host, and the few QMP commands that it is asked."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from nemu.errors import HostError

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
        self._qmp = qmp
        self._lines = qmp.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._message()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result.  Raises HostError with QEMU's words."""
        self._qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        return self._answer()

    def hand_over(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file, which it then knows as ``fd:name``."""
        message = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        socket.send_fds(self._qmp, [message], [descriptor])
        self._answer()

    def _answer(self) -> Any:
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise HostError(f"the emulated host: {message['error']['desc']}")
            self._events.append(message)

    def wait_event(self, name: str) -> None:
        """Wait until QEMU has told of the event ``name``; each one counts once."""
        while True:
            for index, event in enumerate(self._events):
                if event.get("event") == name:
                    del self._events[: index + 1]
                    return
            self._events.append(self._message())

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
        self._lines.close()
        self._qmp.close()
        self.link.close()

    def _message(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise HostError(f"the emulated host ended: {self.failure()}")
        message: dict[str, Any] = json.loads(line)
        return message
