"""``--rng``: virtio-rng on the host kernel's entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.peripherals.kind import Peripheral
from nemu.virtio.rng import VirtioRng

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Rng(Peripheral):
    """The entropy device, which has nothing to open."""

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        yield VirtioRng("virtio-rng0", machine.loop)
