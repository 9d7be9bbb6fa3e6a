"""``--vsock``: virtio-vsock, by the host kernel or on a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.errors import HostError
from nemu.peripherals.kind import Peripheral, Run

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Vsock(Peripheral):
    """The socket device."""

    def _open(self, run: Run) -> None:
        assert run.config.vsock
        if not run.config.vsock.socket:
            raise HostError("--vsock: the host kernel's data plane is not there yet")

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        config = self._config.vsock
        assert config
        if config.socket:
            from nemu.virtio.vsock import VirtioVsock  # type: ignore[import-untyped]

            yield VirtioVsock("virtio-vsock0", config.cid, config.socket, machine.loop)
