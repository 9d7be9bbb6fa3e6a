"""One kind of peripherals, its host side open for a whole run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

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


class Peripheral:
    """The backends of one kind of device, opened once a run, and the devices on them, new in each machine.

    A constructor takes a Run and may raise ConfigError and HostError; what it kept until then is closed.
    """

    def __init__(self, run: Run) -> None:
        self._config = run.config
        self._loop = run.loop
        self._kept: list[Closeable] = []
        try:
            self._open(run)
        except BaseException:
            self.close()
            raise

    def _open(self, run: Run) -> None:
        """Open the backends, ``_keep`` each.  Raises ConfigError, HostError."""

    def ready(self) -> None:
        """Wait for the programs that were started; before the guest first runs.  Raises HostError."""

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        """New devices on the open backends."""
        return iter(())

    def blocks(self) -> Iterable[BlockInfo]:
        """The disks among its backends."""
        return ()

    def chardevs(self) -> Iterable[ChardevInfo]:
        """The character backends among its backends."""
        return ()

    def drain(self) -> None:
        """Wait for I/O in flight: a write of one machine must not land under the next one's eyes."""

    def close(self) -> None:
        """Give the backends back, the last one opened first.  Idempotent."""
        while self._kept:
            self._kept.pop().close()

    def _keep(self, backend: B) -> B:
        self._kept.append(backend)
        return backend


def warn(text: str) -> None:
    """One line for the user."""
    print(f"nemu: {text}", file=sys.stderr)
