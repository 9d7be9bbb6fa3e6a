"""``--port``: named ports for programs in the guest, all on one device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from nemu.backends.chardev import describe, open_chardev
from nemu.interfaces import ChardevInfo
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.ports import NamedPort, VirtioPorts

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Ports(Peripheral):
    """The sockets and files behind the named ports."""

    PREFIX = "virtio-ports"

    @classmethod
    def at_start(cls, run: Run, config: Any) -> Iterator[Self]:
        """One device for all of them."""
        yield cls(run, config)

    def _open(self, run: Run) -> None:
        self._ports = [
            NamedPort(
                port.name,
                self._keep(open_chardev(port.chardev, run.loop, run.leave, f"--port name={port.name}")),
            )
            for port in self._config
        ]

    def chardevs(self) -> Iterator[ChardevInfo]:
        for config, port in zip(self._config, self._ports, strict=True):
            yield describe(config.name, config.chardev, port.backend)

    def device(self, machine: Machine) -> VirtioDevice:
        return VirtioPorts(self.name, self._ports, machine.loop)
