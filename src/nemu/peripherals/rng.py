"""``--rng``: virtio-rng on the host kernel's entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.peripherals.kind import Peripheral
from nemu.virtio.rng import VirtioRng

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Rng(Peripheral):
    """The entropy device, which has nothing to open."""

    PREFIX = "virtio-rng"
    REMOVABLE = True

    def device(self, machine: Machine) -> VirtioDevice:
        return VirtioRng(self.name, machine.loop)
