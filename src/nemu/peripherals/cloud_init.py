"""``--cloud-init``: a seed for cloud-init as a small read-only disk behind all others."""

from __future__ import annotations

from collections.abc import Iterator
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
        seed = self._keep(Seed(run.config.cloud_init))
        self._disk = self._keep(Disk(seed.path, readonly=True, option="--cloud-init"))

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        number = len(self._config.disks)
        yield VirtioBlk(f"virtio-blk{number}", self._disk, machine.lock, machine.loop)

    def drain(self) -> None:
        self._disk.drain()
