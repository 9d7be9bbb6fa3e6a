"""What a virtio device is to its transport, and the transport to the device (virtio 1.2, section 2).

Order of calls, all with the machine lock held::

    activate ── notify* / write_config* ── deactivate ── done() ── activate ...      close()

``activate`` comes with DRIVER_OK, ``deactivate`` with a reset of the device, of the machine,
or when ``Transport.stop`` was called.  Between ``deactivate`` and ``activate`` a device has no
queue and no way to guest RAM.  The backend (disk, tap, terminal) outlives all of them.

A GuestError that leaves ``notify`` or ``activate`` is caught by the transport, which stops
the device.  Everywhere else (loop callbacks, worker threads) the device calls
``Transport.stop`` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol

from nemu.errors import GuestError, HostError
from nemu.interfaces import EventLoop
from nemu.virtio.common_config import F_EVENT_IDX, F_INDIRECT_DESC
from nemu.virtio.queue import Chain, Queue

# Chains handled in one go by one queue, so that a driver on another CPU that refills its ring as fast as
# the device drains it cannot keep the loop from everything else.
BATCH = 256


class Transport(Protocol):
    """What a device may ask of its transport while it is active.  Called with the machine lock held."""

    def config_changed(self) -> None:
        """``VirtioDevice.config`` changed: show it to the driver, new generation, interrupt."""
        ...

    def stop(self, error: GuestError | HostError) -> None:
        """The driver broke the rules, or the host's side is lost: DEVICE_NEEDS_RESET, logged once.

        Calls ``deactivate``.
        """
        ...


class MachineLock(Protocol):
    """The machine lock (a ``threading.RLock``), for devices that have threads of their own."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class VirtioDevice(ABC):
    """One virtio device without its transport.

    ``queue_sizes`` are the largest sizes, one for each queue.  ``features`` are the bits of this
    device type (below 24, or 50 and up); the transport adds VERSION_1.  ``ring_features`` are those of 6
    that whoever serves the queues can do.
    ``config`` is the device-specific configuration space, always equal to what a read gives.
    """

    device_id: int
    queue_sizes: tuple[int, ...]
    features: int
    ring_features = F_INDIRECT_DESC | F_EVENT_IDX

    def __init__(self, name: str, config: bytes) -> None:
        self.name = name
        self.config = bytearray(config)

    @abstractmethod
    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        """The driver is ready (DRIVER_OK).  ``queues`` has None where the driver enabled none."""

    def serves(self, index: int) -> bool:
        """Whether ``notify`` is called for queue ``index``; else a data plane outside hears its kicks."""
        return True

    @abstractmethod
    def notify(self, index: int) -> None:
        """The driver made buffers available in queue ``index``.  Raises GuestError.

        May come for a queue that is not enabled and, late, for a device that is not active.
        """

    @abstractmethod
    def deactivate(self, done: Callable[[], None]) -> None:
        """Let go of the queues.  Calls ``done`` (machine lock held) once no I/O touches guest RAM.

        That may be at once.  Allowed when not active.
        """

    def write_config(self, offset: int, width: int, value: int) -> None:  # noqa: B027
        """The driver wrote ``width`` bytes of ``config``.  Most devices have no writable field."""

    def close(self) -> None:  # noqa: B027
        """The machine is gone: let go of the backend (which may serve the next machine)."""


def drain(queue: Queue, handle: Callable[[Chain], bool]) -> bool:
    """Give available chains to ``handle`` until there is none left or it returns False (it is full).

    Returns True when BATCH were handled and there may be more: then the caller comes back through
    the loop (see ``again``).  Used buffers are published at the end, together.  Notifications
    stay off while ``handle`` is full: it is the backend that wakes the device then.  Raises GuestError.
    """
    queue.disable_notifications()
    for _ in range(BATCH):
        chain = queue.pop()
        if chain is None:
            queue.flush()
            if not queue.enable_notifications():
                return False
            queue.disable_notifications()
        elif not handle(chain):
            queue.flush()
            return False
    queue.flush()
    return True


def guarded(transport: Transport, action: Callable[[], None]) -> None:
    """Run ``action`` outside of ``notify``: a GuestError stops the device."""
    try:
        action()
    except GuestError as error:
        transport.stop(error)


@dataclass(frozen=True, slots=True)
class _Again:
    """Equal to another one for the same queue of the same device, so that the loop keeps one of them."""

    transport: Transport
    action: Callable[..., None]
    arguments: tuple[int, ...]

    def __call__(self) -> None:
        guarded(self.transport, partial(self.action, *self.arguments))


def again(loop: EventLoop, transport: Transport, action: Callable[..., None], *arguments: int) -> None:
    """Run ``action`` in the next turn of the loop, guarded; once, however often it is asked for.

    Else a driver that refills its ring and notifies without end would have ever more turns.
    """
    loop.call_once(_Again(transport, action, arguments))
