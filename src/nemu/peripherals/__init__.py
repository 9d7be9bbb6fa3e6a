"""The peripherals of a machine: their host side, opened once a run, and the devices on it.

With ``build`` the only package that knows the concrete devices.  A new kind is a module here, one in
``config`` and one in ``validate``, and a line in KINDS.  Each kind is imported only when a machine has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from nemu.peripherals.consoles import Consoles
from nemu.peripherals.kind import Peripheral, Run

if TYPE_CHECKING:
    from nemu.backends.chardev import Chardev
    from nemu.config import MachineConfig
    from nemu.devices.watchdog import Sticky
    from nemu.interfaces import BlockInfo, ChardevInfo
    from nemu.loop import Loop
    from nemu.machine import Machine
    from nemu.peripherals.command import Command
    from nemu.virtio.device import VirtioDevice

# (field of MachineConfig, module here, class), in the order of their slots on the bus behind the console's.
KINDS = (
    ("disks", "disks", "Disks"),
    ("cloud_init", "cloud_init", "CloudInit"),
    ("nets", "nets", "Nets"),
    ("vhost_users", "vhost_users", "VhostUsers"),
    ("filesystems", "filesystems", "Filesystems"),
    ("rng", "rng", "Rng"),
    ("ports", "ports", "Ports"),
    ("command", "command", "Command"),
    ("pmems", "pmems", "Pmems"),
    ("balloon", "balloon", "BalloonDevice"),
    ("vsock", "vsock", "Vsock"),
)


def _sticky() -> Sticky:
    from nemu.devices.watchdog import Sticky

    return Sticky()


class Peripherals:
    """Everything open; raises ConfigError and HostError, with nothing left open.

    ``leave`` and ``emit`` are those of Run.  ``watchdog`` survives a reset.
    """

    def __init__(
        self, config: MachineConfig, loop: Loop, leave: Callable[[], None], emit: Callable[..., None]
    ) -> None:
        run = Run(config, loop, leave, emit)
        self._open: list[Peripheral] = []
        try:
            # What may fail for a wrong setting comes first, the user's terminal last.
            for field, module, name in KINDS:
                if getattr(config, field):
                    kind: type[Peripheral] = getattr(import_module(f"nemu.peripherals.{module}"), name)
                    self._open.append(kind(run))
            # It has another look than the other kinds: the run ends with it.
            self.command: Command | None = self._open[-1] if config.command else None  # type: ignore[assignment]
            self.watchdog = _sticky() if config.watchdog != "off" else None
            self._consoles = Consoles(run)
            self._open.insert(0, self._consoles)
        except BaseException:
            self.close()
            raise

    @property
    def serial(self) -> Chardev | None:
        """What is behind the serial port, None without one."""
        return self._consoles.serial

    @property
    def console_opened(self) -> bool:
        """Whether the guest of the latest machine has ever started its console driver."""
        return self._consoles.opened

    @property
    def initramfs(self) -> bytes:
        """An archive that the guest finds in its initramfs besides what the user gave, b"" for none."""
        return self.command.initramfs if self.command else b""

    def ready(self) -> None:
        """Wait for the programs that were started; before the guest first runs.  Raises HostError."""
        for kind in self._open:
            kind.ready()

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        """New virtio devices on the open backends, in the order of their slots."""
        for kind in self._open:
            yield from kind.devices(machine)

    def blocks(self) -> list[BlockInfo]:
        """Every disk."""
        return [block for kind in self._open for block in kind.blocks()]

    def chardevs(self) -> list[ChardevInfo]:
        """Every character backend."""
        return [chardev for kind in self._open for chardev in kind.chardevs()]

    def drain(self) -> None:
        """Wait for I/O in flight: a write of one machine must not land under the next one's eyes."""
        for kind in self._open:
            kind.drain()

    def close(self) -> None:
        """The terminal first, so that it is the user's again before anything else."""
        while self._open:
            self._open.pop(0).close()
