"""``--fs``: directories of the host, by virtiofsd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.vhost.user.fs import VhostUserFs

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Filesystems(Peripheral):
    """Every shared file system of the machine."""

    def _open(self, run: Run) -> None:
        self._shared = [
            self._keep(VhostUserFs(config, self._loop, warn)) for config in run.config.filesystems
        ]

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        for number, shared in enumerate(self._shared):
            yield shared.device(f"virtio-fs{number}", machine.ram)

    def drain(self) -> None:
        for shared in self._shared:
            shared.drain()
