"""Several machines at once whose guests measure in turn.  Runs in the emulated host.

Two machines see the same mood of a busy host when little time lies between their turns, and an idle guest
costs its neighbour nothing.
"""

from __future__ import annotations

import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from nemu.errors import HostError
from peers import results
from peers.boots import output, running
from peers.devices import DEVICES, Place
from peers.machines import MODERN, OURS, our_machine, q35_machine
from peers.trace import Trace

MEMORY = 384  # MiB
PATIENCE = 600.0  # seconds for one turn on a busy machine, fio's start in it
BOOT_PATIENCE = 240.0
QEMU_TRIES = 3  # about one guest of QEMU's in ten does not come up in the emulated host
IMAGES = "/dev/shm"
_READY, _END = "#ready\n", "#end\n"


class Plan(NamedTuple):
    """What all machines do; ``boot`` is kernel, initrd and command line, by which the guest measures."""

    device: str
    boot: list[str]
    tools: str


class Turns:
    """One running machine, whose guest waits for its turns; the first one is to set up the device.

    Entered when the guest asks for it.  ``failed`` counts boots of QEMU's that did not come so far.
    """

    def __init__(self, name: str, number: int, plan: Plan, trace: Trace) -> None:
        self.name = name
        self.exits = 0  # returns of KVM_RUN while data moved
        self.failed = 0
        self._number = number
        self._plan = plan
        self._trace = trace
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes]
        self._printed = ""

    def __enter__(self) -> Self:
        while True:
            try:
                self._start()
                return self
            except BaseException as error:
                self._stack.close()
                self.failed += 1
                if not isinstance(error, HostError) or self.name == OURS or self.failed == QEMU_TRIES:
                    raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=IMAGES))
        place = Place(directory, self._number)
        device, boot, tools = self._plan
        self._stack.enter_context(DEVICES[device].backend(place))
        argv = command(self.name, boot, device, place, tools)
        self._process, _ = self._stack.enter_context(running(argv, stdin=subprocess.PIPE))
        self._printed = ""
        self._wait(BOOT_PATIENCE)

    @property
    def done(self) -> bool:
        return self._printed.endswith(_END)

    def turn(self) -> None:
        """Let the guest go on until it asks for the next turn or is done.  Raises HostError."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        self._wait(PATIENCE)

    def measure(self) -> None:
        """``turn``, and count the exits."""
        before = sum(self._trace.exits().values())
        self.turn()
        self.exits += sum(self._trace.exits().values()) - before

    def figures(self) -> results.Values:
        return results.parse(self._plan.device, self._printed)

    def _wait(self, patience: float) -> None:
        """Read what the guest prints until it wants a turn or is done.  Raises HostError."""
        deadline = time.monotonic() + patience
        while not self._printed.endswith((_READY, _END)):
            ended = self._process.poll() is not None  # before the last words are read
            assert self._process.stdout is not None
            select.select([self._process.stdout], [], [], 1.0)
            self._printed += output(self._process).decode(errors="replace").replace("\r", "")
            if (ended or time.monotonic() > deadline) and not self._printed.endswith((_READY, _END)):
                said = self._printed[-800:]
                raise HostError(f"{self.name} did not measure {self._plan.device}: {said!r}")
        self._printed = self._printed.removesuffix(_READY)


def measure(machines: Sequence[str], device: str, boot: list[str], tools: str) -> dict[str, dict[str, Any]]:
    """``figures``, ``exits`` and ``failed`` of each of the machines (see Turns); for the others see Plan."""
    plan = Plan(device, boot, tools)
    with ExitStack() as stack:
        trace = stack.enter_context(Trace(exits=True, entries=False))
        guests = [
            stack.enter_context(Turns(name, number, plan, trace)) for number, name in enumerate(machines)
        ]
        for one in guests:
            one.turn()
        while not guests[-1].done:
            for one in guests:
                one.measure()
        return {
            one.name: {"figures": one.figures(), "exits": one.exits, "failed": one.failed} for one in guests
        }


def command(name: str, boot: list[str], device: str, place: Place, tools: str = "") -> list[str]:
    """The machine ``name`` with ``device`` and the disk ``tools``."""
    if name == OURS:
        argv = our_machine(boot, MEMORY)
        argv += ["--disk", f"{tools},readonly=on"] if tools else []
    else:
        # The settings for memory that is shared, and for a device that brings some.
        argv = [
            *q35_machine(boot, MEMORY, ",memory-backend=ram"),
            *("-m", f"{MEMORY}M,slots=1,maxmem={4 * MEMORY}M"),
            *("-object", f"memory-backend-memfd,id=ram,size={MEMORY}M,share=on"),
        ]
        disk = f"driver=raw,node-name=tools,read-only=on,file.driver=file,file.filename={tools}"
        argv += ["-blockdev", disk, "-device", f"virtio-blk-pci,drive=tools,{MODERN}"] if tools else []
    options = DEVICES[device].ours if name == OURS else DEVICES[device].theirs[name]
    return [*argv, *map(place.fill, options)]
