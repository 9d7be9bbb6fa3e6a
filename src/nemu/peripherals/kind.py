"""A peripheral: one device of the machine, its host side open for as long as the device is there."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

from nemu.machine import unheard

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.interfaces import BlockInfo, ChardevInfo
    from nemu.loop import Loop
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Closeable(Protocol):
    def close(self) -> None: ...


B = TypeVar("B", bound=Closeable)


class Run(NamedTuple):
    """What lasts for a run.

    ``leave`` is called when the user leaves by the console's keyboard; ``emit(event, **data)`` tells
    management clients of a QMP event.
    """

    config: MachineConfig
    loop: Loop
    leave: Callable[[], None]
    emit: Callable[..., None] = unheard


class Backends:
    """What was opened and is closed together, the last one first."""

    def __init__(self) -> None:
        self._kept: list[Closeable] = []

    def close(self) -> None:
        """Give the backends back.  Idempotent."""
        while self._kept:
            self._kept.pop().close()

    def _keep(self, backend: B) -> B:
        self._kept.append(backend)
        return backend


class Peripheral(Backends, ABC):
    """The backends of one device, and the device on them, new in each machine.

    ``config`` is what the field of MachineConfig says of it.  ``name`` is the device's, PREFIX and
    ``number`` unless management gave one.  ``backend`` is one that somebody else opened and closes.  A
    constructor may raise ConfigError and HostError; what it kept until then is closed.  ``slot`` is its place
    on the bus, from the first machine on.
    """

    PREFIX = ""
    REMOVABLE = False  # from a running machine

    def __init__(
        self, run: Run, config: Any = None, number: int = 0, *, name: str = "", backend: Any = None
    ) -> None:
        super().__init__()
        self.name = name or f"{self.PREFIX}{number}"
        self.slot: int | None = None
        self.backend = backend
        self._config = config
        self._number = number
        self._loop = run.loop
        try:
            self._open(run)
        except BaseException:
            self.close()
            raise

    @property
    def socket(self) -> str:
        """The path of the vhost-user back end's, "" without one."""
        return getattr(self._config, "socket", "")

    @classmethod
    def at_start(cls, run: Run, config: Any) -> Iterator[Self]:
        """Those that ``config``, the value of the field, asks for."""
        for number, one in enumerate(config if type(config) is tuple else (config,)):
            yield cls(run, one, number)

    def _open(self, run: Run) -> None:
        """Open the backends, ``_keep`` each.  Raises ConfigError, HostError."""

    def ready(self) -> None:
        """Wait for the programs that were started; before the guest sees it.  Raises HostError."""

    @abstractmethod
    def device(self, machine: Machine) -> VirtioDevice:
        """A new device on the open backends.  Raises ConfigError, HostError."""

    def uses(self, backend: object) -> bool:
        """Whether it is on ``backend``, which it does not own."""
        return backend is self.backend

    def blocks(self) -> Iterable[BlockInfo]:
        """The disks among its backends."""
        return ()

    def chardevs(self) -> Iterable[ChardevInfo]:
        """The character backends among its backends."""
        return ()

    def drain(self) -> None:
        """Wait for I/O in flight: a write of one machine must not land under the next one's eyes."""


def warn(text: str) -> None:
    """One line for the user."""
    print(f"nemu: {text}", file=sys.stderr)
