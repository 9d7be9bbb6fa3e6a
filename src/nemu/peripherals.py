"""The peripherals of a machine: their host side, opened once a run, and the devices on it.

With ``build`` the only module that knows the concrete devices: a new one is a file of its own, a
dataclass in ``config`` and a line here.  Each kind is imported only when a machine has one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from nemu.backends.chardev import open_chardev

if TYPE_CHECKING:
    from nemu.backends.chardev import Chardev
    from nemu.backends.disk import Disk
    from nemu.backends.netdev import NetBackend
    from nemu.backends.passt import Passt
    from nemu.config import MachineConfig, NetConfig
    from nemu.loop import Loop
    from nemu.machine import Machine
    from nemu.virtio.console import VirtioConsole
    from nemu.virtio.device import VirtioDevice

# Request queues of a disk that asks for no number: more of them gain little with one worker pool.
DEFAULT_QUEUES = 4


class Closeable(Protocol):
    def close(self) -> None: ...


B = TypeVar("B", bound=Closeable)


class Peripherals:
    """Everything open; raises ConfigError and HostError, with nothing left open.

    ``leave`` is called when the user leaves by the console's keyboard.
    """

    def __init__(self, config: MachineConfig, loop: Loop, leave: Callable[[], None]) -> None:
        self._config = config
        self._open: list[Closeable] = []
        self._disks: list[Disk] = []
        self._nets: list[NetBackend] = []
        self._starting: list[Passt] = []
        self._console_device: VirtioConsole | None = None
        self.serial: Chardev | None = None
        try:
            # What may fail for a wrong setting comes first, the user's terminal last.
            for disk in config.disks:
                self._disks.append(self._open_disk(disk.path, readonly=disk.readonly))
            for net in config.nets:
                self._nets.append(self._open_net(net))
            if config.serial.kind != "off":
                self.serial = self._keep(open_chardev(config.serial, loop, leave, "--serial"))
            self._console = self._keep(open_chardev(config.console, loop, leave))
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Wait for the programs that were started; before the guest first runs.  Raises HostError."""
        while self._starting:
            self._starting.pop().ready()

    @property
    def console_opened(self) -> bool:
        """Whether the guest of the latest machine has ever started its console driver."""
        return self._console_device is not None and self._console_device.opened

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        """New virtio devices on the open backends, in the order of their slots."""
        from nemu.virtio.console import VirtioConsole

        self._console_device = VirtioConsole("virtio-console0", self._console, machine.loop)
        yield self._console_device
        if self._disks:
            yield from self._blk_devices(machine)
        if self._nets:
            yield from self._net_devices(machine)
        if self._config.rng:
            from nemu.virtio.rng import VirtioRng

            yield VirtioRng("virtio-rng0", machine.loop)

    def drain(self) -> None:
        """Wait for I/O in flight: a write of one machine must not land under the next one's eyes."""
        for disk in self._disks:
            disk.drain()

    def close(self) -> None:
        """The last one opened first, so that the terminal is the user's again before anything else."""
        while self._open:
            self._open.pop().close()

    def _keep(self, backend: B) -> B:
        self._open.append(backend)
        return backend

    def _open_disk(self, path: str, *, readonly: bool) -> Disk:
        from nemu.backends.disk import Disk

        return self._keep(Disk(path, readonly))

    def _open_net(self, net: NetConfig) -> NetBackend:
        if net.backend == "user":
            from nemu.backends.passt import Passt

            passt = self._keep(Passt())
            self._starting.append(passt)
            return passt
        from nemu.backends.tap import inherited_tap, open_tap

        return self._keep(inherited_tap(net.fd) if net.backend == "fd" else open_tap(net.tap))

    def _blk_devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        from nemu.virtio.blk import VirtioBlk

        for number, (config, disk) in enumerate(zip(self._config.disks, self._disks, strict=True)):
            queues = config.queues or min(self._config.cpus, DEFAULT_QUEUES)
            yield VirtioBlk(
                f"virtio-blk{number}", disk, machine.lock, machine.loop, queues=queues, serial=config.serial
            )

    def _net_devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        from nemu.virtio.net import VirtioNet, stable_mac

        for number, (config, backend) in enumerate(zip(self._config.nets, self._nets, strict=True)):
            mac = bytes.fromhex(config.mac.replace(":", "")) or stable_mac(f"{backend.name} {number}")
            yield VirtioNet(f"virtio-net{number}", backend, mac, machine.loop, warn)


def warn(text: str) -> None:
    """One line for the user."""
    print(f"nemu: {text}", file=sys.stderr)
