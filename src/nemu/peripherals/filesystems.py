"""``--fs``: directories of the host, by virtiofsd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.vhost.user.fs import VhostUserFs

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Filesystem(Peripheral):
    """One shared file system."""

    PREFIX = "virtio-fs"
    REMOVABLE = True

    def _open(self, run: Run) -> None:
        self._shared = self._keep(VhostUserFs(self._config, self._loop, warn))

    def device(self, machine: Machine) -> VirtioDevice:
        return self._shared.device(self.name, machine.ram)

    def drain(self) -> None:
        self._shared.drain()
