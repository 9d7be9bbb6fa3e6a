"""Several machines at once whose guests measure in turn.  Runs in the emulated host.

Two machines see the same mood of a busy host when little time lies between their turns, and an idle guest
costs its neighbour nothing.
"""

from __future__ import annotations

import re
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nemu.errors import HostError
from peers import results
from peers.boots import output, running
from peers.devices import DEVICES, Place
from peers.machines import MODERN, OURS, our_machine, q35_machine
from peers.trace import Trace

MEMORY = 384  # MiB
PATIENCE = 240.0  # seconds without a word from the guest
IMAGES = "/dev/shm"
_READY = "#ready\n"
_DONE = re.compile(r"^#end (\w+)\n", re.MULTILINE)


class Turns:
    """One machine, whose guest waits for its turns."""

    def __init__(
        self, name: str, argv: list[str], devices: Sequence[str], trace: Trace, stack: ExitStack
    ) -> None:
        self.name = name
        self.figures: dict[str, list[float]] = {}
        self.exits: dict[str, int] = {}  # by device: returns of KVM_RUN in its turns
        self._missing = list(devices)
        self._trace = trace
        self._process, _ = stack.enter_context(running(argv, stdin=subprocess.PIPE))
        self._printed = ""

    def wait(self) -> bool:
        """Until the guest asks for its next turn; False when it is done with all devices.  Raises HostError."""
        deadline = time.monotonic() + PATIENCE
        while self._missing:
            while done := _DONE.search(self._printed):
                self._take(done[1], self._printed[: done.start()])
                self._printed = self._printed[done.end() :]
            before, ready, after = self._printed.partition(_READY)
            if ready:
                self._printed = before + after
                return True
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = f"{self.name} did not measure {self._missing[0]}: {self._printed[-800:]!r}"
                raise HostError(end)
            select.select([self._process.stdout], [], [], 1.0)
            self._printed += output(self._process).decode(errors="replace").replace("\r", "")
        return False

    def turn(self) -> bool:
        """Let the guest measure once; False when it is done with all devices."""
        if not self._missing:
            return False
        device = self._missing[0]
        before = self._trace.exits()
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        more = self.wait()
        count = sum(self._trace.exits().values()) - sum(before.values())
        self.exits[device] = self.exits.get(device, 0) + count
        return more

    def _take(self, device: str, text: str) -> None:
        self._missing.remove(device)
        for what, values in results.parse(device, text).items():
            self.figures[f"{device}_{what}"] = values


def measure(
    machines: Mapping[str, Sequence[str]], boots: Mapping[str, list[str]], tools: str
) -> dict[str, dict[str, Any]]:
    """``figures`` and ``exits`` (see Turns) of each machine; ``machines`` are their devices.

    ``boots`` are kernel, initrd and command line, by which the guest measures the devices in this order.
    """
    with ExitStack() as stack:
        trace = stack.enter_context(Trace(exits=True, entries=False))
        guests: list[Turns] = []
        for number, (name, devices) in enumerate(machines.items()):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=IMAGES))
            place = Place(directory, number)
            for device in devices:
                stack.enter_context(DEVICES[device].backend(place))
            argv = command(name, devices, boots[name], tools, place)
            guests.append(Turns(name, argv, devices, trace, stack))
            guests[-1].wait()  # before the next one boots
        while any([guest.turn() for guest in guests]):  # a list: each of them has its turn
            pass
        return {guest.name: {"figures": guest.figures, "exits": guest.exits} for guest in guests}


def command(name: str, devices: Sequence[str], boot: list[str], tools: str, place: Place) -> list[str]:
    """The machine ``name`` with the disk ``tools`` and ``devices``."""
    if name == OURS:
        argv = [*our_machine(boot, MEMORY), "--disk", f"{tools},readonly=on"]
        options = [word for device in devices for word in DEVICES[device].ours]
    else:
        # The settings for memory that is shared, and for a device that brings some.
        argv = [
            *q35_machine(boot, MEMORY, ",memory-backend=ram"),
            *("-m", f"{MEMORY}M,slots=1,maxmem={4 * MEMORY}M"),
            *("-object", f"memory-backend-memfd,id=ram,size={MEMORY}M,share=on"),
            *("-blockdev", f"driver=raw,node-name=tools,read-only=on,file.driver=file,file.filename={tools}"),
            *("-device", f"virtio-blk-pci,drive=tools,{MODERN}"),
        ]
        options = [word for device in devices for word in DEVICES[device].theirs[name]]
    return argv + [place.fill(word) for word in options]
