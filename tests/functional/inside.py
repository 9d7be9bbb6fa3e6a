"""A nemu under observation: what functions that run inside the emulated host drive and look at.

Nothing here imports pytest: it is loaded anew for each call.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence
from typing import Any, Self

PYTHON = "/usr/bin/python3.11"
ENVIRONMENT = {**os.environ, "PYTHONPATH": "/nemu/src", "PYTHONDONTWRITEBYTECODE": "1"}
PATIENCE = 60.0  # seconds: how long something may take that comes in a moment on an idle machine


class Nemu:
    """``nemu`` as a process, on pipes or, with ``size`` (rows, columns), on a pseudo-terminal of its own."""

    def __init__(self, argv: Sequence[str], size: tuple[int, int] | None = None) -> None:
        command = [PYTHON, "-m", "nemu", *argv]
        stderr, error_end = os.pipe()
        self.stderr_end = stderr
        if size:
            self.fd = self._on_terminal(command, error_end, size)
            self.input = self.fd
        else:
            self._on_pipes(command, error_end)
        os.close(error_end)
        self.shown = b""
        self.said = b""
        self.status: int | None = None

    def _on_terminal(self, command: Sequence[str], error_end: int, size: tuple[int, int]) -> int:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("<HHHH", *size, 0, 0))
        self.slave = slave  # kept open, to see the terminal's mode afterwards
        self.attributes = termios.tcgetattr(slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            self._exec(command, slave, slave, error_end)
        return master

    def _on_pipes(self, command: Sequence[str], error_end: int) -> None:
        stdin, self.input = os.pipe()
        self.fd, stdout = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._exec(command, stdin, stdout, error_end)
        os.close(stdin)
        os.close(stdout)

    @staticmethod
    def _exec(command: Sequence[str], stdin: int, stdout: int, stderr: int) -> None:
        try:
            for number, fd in enumerate((stdin, stdout, stderr)):
                os.dup2(fd, number)
            os.closerange(3, 256)
            os.execve(command[0], list(command), ENVIRONMENT)
        finally:
            os._exit(127)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # somebody has asked for its status already

    def expect(self, pattern: str, patience: float = PATIENCE) -> str:
        """Read its output until ``pattern`` has come; that much of it, which is then forgotten."""
        deadline = time.monotonic() + patience
        while not (found := re.search(pattern.encode(), self.shown)):
            if time.monotonic() > deadline or not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {pattern!r} in {self.shown!r}; errors: {self.stderr()!r}")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before.decode(errors="replace").replace("\r", "")

    def _read(self, timeout: float) -> bytes:
        if not select.select([self.fd], [], [], max(timeout, 0))[0]:
            return b""
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the terminal has no other end any more
            return b""
        self.shown += data
        return data

    def type(self, text: str) -> None:
        os.write(self.input, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit status; meanwhile what it prints is read."""
        deadline = time.monotonic() + patience
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise AssertionError(f"still running; it showed {self.shown!r}, errors: {self.stderr()!r}")
            else:
                self._read(0.05)
        while self._read(0):
            pass
        return self.status

    def stderr(self) -> str:
        """Its standard error until now."""
        while select.select([self.stderr_end], [], [], 0)[0] and (data := os.read(self.stderr_end, 65536)):
            self.said += data
        return self.said.decode(errors="replace")

    def resources(self) -> dict[str, Any]:
        """What the process holds: descriptors by target, thread count, memory (KiB) aside from guest RAM."""
        fds = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            target = os.readlink(f"/proc/{self.pid}/fd/{fd}")
            fds.append(re.sub(r"\d+", "N", target))
        return {
            "fds": sorted(fds),
            "threads": len(os.listdir(f"/proc/{self.pid}/task")),
            "pss": self._pss(),
            "mappings": self._mappings(),
        }

    def _mappings(self) -> int:
        with open(f"/proc/{self.pid}/maps", encoding="ascii") as file:
            return len(file.readlines())

    def _pss(self) -> int:
        total, is_ram = 0, False
        with open(f"/proc/{self.pid}/smaps", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    total += 0 if is_ram else int(line.split()[1])
                elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    is_ram = "memfd:" in line and "ram" in line
        return total


def processes(name: str) -> list[int]:
    """The processes of this name (15 bytes of it)."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if text[text.index("(") + 1 : text.rindex(")")].startswith(name) and ") Z" not in text:
            found.append(int(entry))
    return found


def gone(check: Any, patience: float = 10.0) -> bool:
    """Whether ``check`` gives nothing any more, now or soon."""
    deadline = time.monotonic() + patience
    while check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
