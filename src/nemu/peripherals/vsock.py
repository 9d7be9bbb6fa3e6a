"""``--vsock``: virtio-vsock, by the host kernel or on a Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.errors import HostError
from nemu.peripherals.kind import Peripheral, Run

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.vhost.vsock import VsockPlane
    from nemu.virtio.device import VirtioDevice


class Vsock(Peripheral):
    """The socket device."""

    PREFIX = "virtio-vsock"

    def _open(self, run: Run) -> None:
        config = self._config
        self._plane: VsockPlane | None = None
        if config.socket:
            from nemu.backends.vsock_socket import VsockSocket

            self._socket = self._keep(VsockSocket(config.socket, run.loop))
        else:
            from nemu.vhost.kernel import open_device
            from nemu.vhost.vsock import DEVICE, VsockPlane

            try:
                fd = config.vhostfd if config.vhostfd >= 0 else open_device(DEVICE, "vhost_vsock")
                self._plane = self._keep(VsockPlane(fd, config.cid))
            except HostError as error:
                raise HostError(f"--vsock cid={config.cid}: {error}") from error

    def device(self, machine: Machine) -> VirtioDevice:
        if self._plane:
            from nemu.vhost.vsock import VhostVsock

            return VhostVsock(self.name, self._plane, machine.ram, machine.loop)
        from nemu.virtio.vsock import VirtioVsock

        return VirtioVsock(self.name, self._config.cid, self._socket, machine.loop)
