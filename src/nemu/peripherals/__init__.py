"""The peripherals of a machine: their host side, opened once a run, and the devices on it.

With ``build`` the only package that knows the concrete devices.  A new kind is a module here, one in
``config`` and one in ``validate``, and a line in KINDS.  Each kind is imported only when a machine has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any

from nemu.peripherals.consoles import Consoles
from nemu.peripherals.kind import Peripheral, Run

if TYPE_CHECKING:
    from nemu.backends.chardev import Chardev
    from nemu.config import MachineConfig
    from nemu.config.disk import DiskConfig
    from nemu.config.net import NetConfig
    from nemu.devices.watchdog import Sticky
    from nemu.interfaces import BlockInfo, ChardevInfo
    from nemu.loop import Loop
    from nemu.peripherals.command import Command
    from nemu.peripherals.disks import Node
    from nemu.peripherals.nets import Port

# (field of MachineConfig, module here, class), in the order of their slots on the bus behind the console's.
KINDS = (
    ("disks", "disks", "BlockDevice"),
    ("cloud_init", "cloud_init", "CloudInit"),
    ("nets", "nets", "Nic"),
    ("vhost_users", "vhost_users", "VhostUser"),
    ("filesystems", "filesystems", "Filesystem"),
    ("rng", "rng", "Rng"),
    ("ports", "ports", "Ports"),
    ("command", "command", "Command"),
    ("pmems", "pmems", "Pmem"),
    ("balloon", "balloon", "BalloonDevice"),
    ("vsock", "vsock", "Vsock"),
)


def _kind(field: str) -> type[Peripheral]:
    module, name = next((module, name) for one, module, name in KINDS if one == field)
    kind: type[Peripheral] = getattr(import_module(f"nemu.peripherals.{module}"), name)
    return kind


def _sticky() -> Sticky:
    from nemu.devices.watchdog import Sticky

    return Sticky()


class Peripherals:
    """Everything open; raises ConfigError and HostError, with nothing left open.

    ``leave`` and ``emit`` are those of Run.  ``watchdog`` survives a reset.  Iterated, it gives what is there
    in the order of the slots that a first machine has.
    """

    def __init__(
        self, config: MachineConfig, loop: Loop, leave: Callable[[], None], emit: Callable[..., None]
    ) -> None:
        self._run = run = Run(config, loop, leave, emit)
        self._open: list[Peripheral] = []
        try:
            # What may fail for a wrong setting comes first, the user's terminal last.
            for field, *_ in KINDS:
                if value := getattr(config, field):
                    for one in _kind(field).at_start(run, value):
                        self._open.append(one)  # each at once: a later one may fail
            self.command = self._command()
            self.watchdog = _sticky() if config.watchdog != "off" else None
            self._consoles = Consoles(run)
            self._open.insert(0, self._consoles)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Peripheral]:
        return iter(self._open)

    def make(self, field: str, config: Any, name: str, backend: Any = None) -> Peripheral:
        """One more of what ``field`` of MachineConfig has, open but not part of the machine.

        Raises ConfigError and HostError.
        """
        kind = _kind(field)
        taken = {*(one.name for one in self._open), *(block.device for block in self.blocks())}
        number = next(number for number in count() if f"{kind.PREFIX}{number}" not in taken)
        return kind(self._run, config, number, name=name, backend=backend)

    def open_node(self, config: DiskConfig, name: str) -> Node:
        """A backend for ``make("disks", ...)``.  Raises ConfigError and HostError."""
        from nemu.peripherals.disks import open_node

        return open_node(config, self._run, name)

    def open_port(self, config: NetConfig) -> Port:
        """A backend for ``make("nets", ...)``.  Raises ConfigError and HostError."""
        from nemu.peripherals.nets import Port

        port = Port(config, self._run.loop)
        try:
            port.ready()
        except BaseException:
            port.close()
            raise
        return port

    def add(self, peripheral: Peripheral) -> None:
        """``peripheral`` is part of this machine and the next ones; it is closed here."""
        self._open.append(peripheral)

    def take(self, peripheral: Peripheral) -> None:
        """Not any more, and whoever calls closes it."""
        self._open.remove(peripheral)

    @property
    def serial(self) -> Chardev | None:
        """What is behind the serial port, None without one."""
        return self._consoles.serial

    @property
    def console_opened(self) -> bool:
        """Whether the guest of the latest machine has ever started its console driver."""
        return self._consoles.opened

    def _command(self) -> Command | None:
        """The one that has another look than the other kinds: the run ends with it."""
        if not self._run.config.command:
            return None
        from nemu.peripherals.command import Command

        return next(one for one in self._open if isinstance(one, Command))

    @property
    def initramfs(self) -> bytes:
        """An archive that the guest finds in its initramfs besides what the user gave, b"" for none."""
        return self.command.initramfs if self.command else b""

    def ready(self) -> None:
        """Wait for the programs that were started; before the guest first runs.  Raises HostError."""
        for one in self._open:
            one.ready()

    def blocks(self) -> list[BlockInfo]:
        """Every disk."""
        return [block for one in self._open for block in one.blocks()]

    def chardevs(self) -> list[ChardevInfo]:
        """Every character backend."""
        return [chardev for one in self._open for chardev in one.chardevs()]

    def drain(self) -> None:
        """Wait for I/O in flight: a write of one machine must not land under the next one's eyes."""
        for one in self._open:
            one.drain()

    def close(self) -> None:
        """The terminal first, so that it is the user's again before anything else."""
        while self._open:
            self._open.pop(0).close()
