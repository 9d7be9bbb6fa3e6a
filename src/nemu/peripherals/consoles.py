"""``--console`` and ``--serial``: the terminal, files and sockets behind the machine's consoles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.backends.chardev import Chardev, describe, open_chardev
from nemu.interfaces import ChardevInfo
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.console import VirtioConsole

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Consoles(Peripheral):
    """The virtio console, and the backend of the serial port, which the board has."""

    PREFIX = "virtio-console"

    def _open(self, run: Run) -> None:
        self._device: VirtioConsole | None = None
        self.serial: Chardev | None = None
        if run.config.serial.kind != "off":
            self.serial = self._keep(open_chardev(run.config.serial, run.loop, run.leave, "--serial"))
        self._console = self._keep(open_chardev(run.config.console, run.loop, run.leave))
        self._configs = {"console": run.config.console, "serial": run.config.serial}

    @property
    def opened(self) -> bool:
        """Whether the guest of the latest machine has ever started its console driver."""
        return self._device is not None and self._device.opened

    def chardevs(self) -> Iterator[ChardevInfo]:
        yield describe("console", self._configs["console"], self._console)
        if self.serial is not None:
            yield describe("serial", self._configs["serial"], self.serial)

    def device(self, machine: Machine) -> VirtioDevice:
        self._device = VirtioConsole(self.name, self._console, machine.loop)
        return self._device
