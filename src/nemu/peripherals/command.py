"""``nemu run -- COMMAND``: the streams of the command, its control, and how it ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Any, Self

from nemu.backends.command_control import CommandControl
from nemu.backends.std_streams import InputStream, OutputStream
from nemu.command.archive import archive
from nemu.machine import Outcome
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.ports import NamedPort, VirtioPorts

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice

_NO_START = (
    "the guest ended before its command began; a kernel needs CONFIG_BLK_DEV_INITRD, CONFIG_DEVTMPFS, "
    "CONFIG_VIRTIO_PCI and CONFIG_VIRTIO_CONSOLE"
)
_NO_STATUS = "the guest ended before its command did"


class Command(Peripheral):
    """The command of this run.  ``initramfs`` brings the job into the guest.

    ``status`` is its exit status once it has ended and its output is written; ``problem`` else says why
    there is none.
    """

    PREFIX = "virtio-command"

    @classmethod
    def at_start(cls, run: Run, config: Any) -> Iterator[Self]:
        """The words of a command are one."""
        yield cls(run, config, name=cls.PREFIX)

    def _open(self, run: Run) -> None:
        self.status: int | None = None
        self._reported: int | None = None
        self._refused = ""
        self._ready = False
        self._machine: Machine | None = None
        # On a terminal the machine's console is the command's terminal.
        on_terminal = run.config.console.kind == "stdio"
        self._outputs = [] if on_terminal else ["out"]
        if not (on_terminal and os.isatty(2)):
            self._outputs.append("err")
        self._writing = set(self._outputs)
        self._control = self._keep(CommandControl(self._said))
        self._ports = [NamedPort("nemu.control", self._control)]
        streams = list(self._outputs)
        if not on_terminal:
            streams.insert(0, "in")
            self._ports.append(NamedPort("nemu.in", self._keep(InputStream(0, run.loop))))
        for name in self._outputs:
            self._ports.append(NamedPort(f"nemu.{name}", self._keep(self._output(name))))
        self.initramfs = archive(run.config, streams)

    def _output(self, name: str) -> OutputStream:
        descriptor = {"out": 1, "err": 2}[name]
        return OutputStream(
            descriptor,
            self._loop,
            done=partial(self._written, name),
            broken=partial(self._control.tell, name),
        )

    @property
    def problem(self) -> str:
        return self._refused or (_NO_STATUS if self._ready else _NO_START)

    def signal(self, number: int) -> bool:
        """Send the command a signal; False when there is none yet."""
        if self._ready:
            self._control.tell(Signals(number).name.removeprefix("SIG"))
        return self._ready

    def device(self, machine: Machine) -> VirtioDevice:
        self._machine = machine
        return VirtioPorts(self.name, self._ports, machine.loop)

    def _said(self, line: str) -> None:
        """The guest's word; the first end that it tells of counts."""
        word, _, rest = line.partition(" ")
        if word == "ready":
            self._ready = True
        elif word == "exit" and rest.isascii() and rest.isdecimal() and self._reported is None:
            self._reported = int(rest) & 0xFF
            self._end_if_done()
        elif word == "error" and not self._refused:
            self._refused = rest
            self._finish()

    def _written(self, name: str) -> None:
        self._writing.discard(name)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._reported is not None and not self._writing:
            self.status = self._reported
            self._finish()

    def _finish(self) -> None:
        if self._machine:
            self._machine.finish(Outcome.POWER_OFF)
