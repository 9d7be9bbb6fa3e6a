"""What the host's kernel sees of a VMM: its first KVM_RUN and its exits to user space.

By trace events in an instance of our own, limited to the children of this process: the same for
every VMM, and without the cost of ptrace, which would weigh on whoever makes more system calls.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from types import TracebackType
from typing import Self

from nemu.errors import HostError

TRACEFS = "/sys/kernel/tracing"
KVM_RUN = 0xAE80  # linux/kvm.h
_EXIT = "events/kvm/kvm_userspace_exit"
_IOCTL = "events/syscalls/sys_enter_ioctl"
_REASON = re.compile(r"reason:\s*(\d+) \} hitcount:\s*(\d+)")
_ENTRY = re.compile(r"\s(\d+\.\d+): sys_ioctl\(")


class Trace:
    """Records from ``__enter__`` on.  Raises HostError where the kernel cannot or may not be traced.

    ``exits``: whether to count them too, which needs a kernel with histogram triggers.  ``entries``: whether
    the first KVM_RUN is wanted, which makes every system call of the host a little slower.
    """

    def __init__(self, *, exits: bool = False, entries: bool = True) -> None:
        self._exits = exits
        self._entries = entries
        self._counting = False
        self._mounted = ""
        self._instance = ""

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
            self.__exit__(None, None, None)
            raise HostError(f"needs root and a kernel with trace events: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counting:
            self._write(f"{_EXIT}/trigger", "!hist:keys=reason")
        if self._instance:
            os.rmdir(self._instance)
        if self._mounted:
            subprocess.run(["umount", self._mounted], check=True)
            os.rmdir(self._mounted)

    def first_run(self) -> float | None:
        """time.monotonic() of the first KVM_RUN, None before it."""
        with open(f"{self._instance}/trace", encoding="ascii", errors="replace") as file:
            found = next(filter(None, map(_ENTRY.search, file)), None)
        return float(found[1]) if found else None

    def exits(self) -> dict[int, int]:
        """Returns of KVM_RUN so far by the number of their reason (linux/kvm.h, KVM_EXIT_*)."""
        with open(f"{self._instance}/{_EXIT}/hist", encoding="ascii") as file:
            return {int(reason): int(count) for reason, count in _REASON.findall(file.read())}

    def _open(self) -> None:
        root = TRACEFS
        if not os.path.isdir(f"{root}/instances"):
            root = self._mounted = tempfile.mkdtemp(prefix="tracefs-")
            done = subprocess.run(
                ["mount", "-t", "tracefs", "tracefs", root], capture_output=True, check=False
            )
            if done.returncode:
                os.rmdir(root)
                self._mounted = ""
                raise OSError(done.stderr.decode(errors="replace").strip())
        instance = f"{root}/instances/bench-{os.getpid()}"
        os.mkdir(instance)
        self._instance = instance
        self._write("trace_clock", "mono")
        self._write("options/event-fork", "1")
        self._write("set_event_pid", str(os.getpid()))
        if self._exits:
            self._write(f"{_EXIT}/trigger", "hist:keys=reason")
            self._counting = True
        if self._entries:
            self._write(f"{_IOCTL}/filter", f"cmd == {KVM_RUN:#x}")
            self._write(f"{_IOCTL}/enable", "1")

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._instance}/{name}", "w", encoding="ascii") as file:
            file.write(text)
