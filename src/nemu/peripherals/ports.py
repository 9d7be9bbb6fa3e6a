"""``--port``: named ports for programs in the guest, all on one device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.backends.chardev import describe, open_chardev
from nemu.interfaces import ChardevInfo
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.ports import NamedPort, VirtioPorts

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Ports(Peripheral):
    """The sockets and files behind the named ports."""

    def _open(self, run: Run) -> None:
        self._ports = [
            NamedPort(
                port.name,
                self._keep(open_chardev(port.chardev, run.loop, run.leave, f"--port name={port.name}")),
            )
            for port in run.config.ports
        ]

    def chardevs(self) -> Iterator[ChardevInfo]:
        for config, port in zip(self._config.ports, self._ports, strict=True):
            yield describe(config.name, config.chardev, port.backend)

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        yield VirtioPorts("virtio-ports0", self._ports, machine.loop)
