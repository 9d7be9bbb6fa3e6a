"""``--balloon``: virtio-balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.balloon import Balloon
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.balloon import VirtioBalloon

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class BalloonDevice(Peripheral):
    """The one balloon, which ``machine.balloon`` steers."""

    PREFIX = "virtio-balloon"

    def _open(self, run: Run) -> None:
        memory = run.config.memory.size
        self._balloon = Balloon(memory, memory - self._config.size)
        self._told = memory
        self._emit = run.emit
        self._balloon.watch(self._tell)

    def _tell(self) -> None:
        if self._balloon.actual != self._told:
            self._told = self._balloon.actual
            self._emit("BALLOON_CHANGE", actual=self._told)

    def device(self, machine: Machine) -> VirtioDevice:
        machine.balloon = self._balloon
        return VirtioBalloon(
            self.name,
            self._balloon,
            machine.ram,
            machine.loop,
            reporting=self._config.reporting,
            deflate_on_oom=self._config.deflate_on_oom,
            interval=self._config.statistics,
        )
