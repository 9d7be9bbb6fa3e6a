"""``--balloon``: virtio-balloon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemu.balloon import Balloon
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.balloon import VirtioBalloon

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class BalloonDevice(Peripheral):
    """The one balloon, which ``machine.balloon`` steers."""

    def _open(self, run: Run) -> None:
        assert run.config.balloon
        memory = run.config.memory.size
        self._balloon = Balloon(memory, memory - run.config.balloon.size)
        self._told = memory
        self._emit = run.emit
        self._balloon.watch(self._tell)

    def _tell(self) -> None:
        if self._balloon.actual != self._told:
            self._told = self._balloon.actual
            self._emit("BALLOON_CHANGE", actual=self._told)

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        config = self._config.balloon
        assert config
        machine.balloon = self._balloon
        yield VirtioBalloon(
            "virtio-balloon0",
            self._balloon,
            machine.ram,
            machine.loop,
            reporting=config.reporting,
            deflate_on_oom=config.deflate_on_oom,
            interval=config.statistics,
        )
