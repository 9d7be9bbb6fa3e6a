"""``--cloud-init``: a seed for cloud-init as a small read-only disk behind all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.backends.disk import Disk
from nemu.cidata import Seed
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.blk import VirtioBlk

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class CloudInit(Peripheral):
    """The disk of the seed."""

    def _open(self, run: Run) -> None:
        self.name = f"virtio-blk{len(run.config.disks)}"
        seed = self._keep(Seed(self._config))
        self._disk = self._keep(Disk(seed.path, readonly=True, option="--cloud-init"))

    def device(self, machine: Machine) -> VirtioDevice:
        return VirtioBlk(self.name, self._disk, machine.lock, machine.loop)

    def drain(self) -> None:
        self._disk.drain()
