"""The seams: what a device, a bus and a transport may know of one another.

``virtio``, ``devices``, ``pci`` and ``acpi`` import this module and never ``kvm`` or
``machine``, so that each of them can be tested with the fakes in ``tests/fakes``.

Guest-physical addresses are ``gpa``; every size is in bytes.  Values that cross the bus
are unsigned little-endian integers with a width of 1 to 8 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class GuestMemory(Protocol):
    """Guest RAM.  Every call raises GuestError unless the range lies wholly inside one RAM region."""

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable view of guest RAM itself (no copy), ``length`` >= 1 bytes, format ``B``."""
        ...

    def readable(self, gpa: int, length: int) -> memoryview:
        """The same for reading only: also of memory that the guest cannot write (a read-only file)."""
        ...

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        ...

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into guest RAM."""
        ...


class IrqLine(Protocol):
    """One edge-triggered interrupt to the guest (an IOAPIC pin or an MSI-X vector)."""

    def signal(self) -> None:
        """Raise it once; callable from any thread."""
        ...


class BusHandler(Protocol):
    """What answers accesses inside a window.  Called with the machine lock held.

    ``width`` is 1 to 8 bytes and the access never leaves the window; a register that
    does not exist reads as all-ones and ignores writes.
    """

    def read(self, offset: int, width: int) -> int: ...

    def write(self, offset: int, width: int, value: int) -> None: ...

    def register_name(self, offset: int) -> str:
        """The register at ``offset`` for reports, e.g. ``"queue_select"``."""
        ...


class Pages(Protocol):
    """Host pages that the guest may read without an exit ("reads are memory").

    The device keeps ``view`` equal to what a read shall give; guest writes still exit to
    the window's handler.  Fields that must not tear are stored through ``view.cast``.
    """

    @property
    def view(self) -> memoryview: ...

    @property
    def size(self) -> int:
        """A multiple of 4096."""
        ...


class Doorbell(NamedTuple):
    """A guest write of any width at ``offset`` signals ``eventfd`` and does not exit."""

    offset: int
    eventfd: int


class Window:
    """A range of guest-physical addresses that one device answers, not yet at an address.

    ``pages``, if given, back the first ``pages.size`` bytes; ``doorbells`` lie behind them.
    """

    __slots__ = ("doorbells", "handler", "name", "pages", "size")

    def __init__(
        self,
        name: str,
        size: int,
        handler: BusHandler,
        pages: Pages | None = None,
        doorbells: tuple[Doorbell, ...] = (),
    ) -> None:
        self.name = name
        self.size = size
        self.handler = handler
        self.pages = pages
        self.doorbells = doorbells


class AddressBus(Protocol):
    """The memory-mapped bus as devices see it.  Called with the machine lock held."""

    def place(self, window: Window, gpa: int) -> None:
        """Answer at ``gpa``.  A window that would cover another one, or RAM, is not decoded until
        the range is free (a guest may move BARs over each other while it rearranges them)."""
        ...

    def withdraw(self, window: Window) -> None:
        """Stop answering.  No effect on a window that is not placed."""
        ...


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Let it not come; no effect when it has.  What the callback holds is let go."""
        ...


class Clock(Protocol):
    """What counts time for the guest.  Called with the machine lock held, while no CPU is in the guest."""

    def stop(self) -> None:
        """The guest stands still from now on."""
        ...

    def start(self) -> None:
        """It goes on, and shall not notice that it stood still."""
        ...


class EventLoop(Protocol):
    """The loop thread.  Callbacks run there, one at a time, *with the machine lock held*."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, fd: int) -> None:
        """No effect on a descriptor that is not watched."""
        ...

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """``callback`` when ``fd`` can be written (or failed); a reader of the same ``fd`` is kept."""
        ...

    def remove_writer(self, fd: int) -> None:
        """No effect on a descriptor that is not watched for writing."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """From any thread: run ``callback`` in the loop thread."""
        ...

    def call_once(self, callback: Callable[[], None]) -> None:
        """With the machine lock held: as ``call_soon``, unless an equal callback waits already."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """From any thread that holds the machine lock: run ``callback`` in the loop thread after a time."""
        ...


class PciBar(NamedTuple):
    """A memory BAR.  ``address`` is None while it is not decoded."""

    number: int
    size: int
    address: int | None
    is_64bit: bool
    prefetchable: bool


class PciFunctionInfo(NamedTuple):
    """A PCI function as management sees it.  ``name`` is "" for the host bridge."""

    name: str
    slot: int
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    class_code: int  # class and subclass, 16 bits
    bars: tuple[PciBar, ...]


class BlockInfo(NamedTuple):
    """A disk as management sees it."""

    node: str  # its own name
    device: str  # the device that shows it to the guest
    path: str
    size: int  # bytes
    readonly: bool
    format: str = "raw"


class ChardevInfo(NamedTuple):
    """A character backend as management sees it."""

    label: str
    where: str  # "stdio", "null", "file:PATH", "unix:PATH"
    open: bool  # whether a device is attached


class Ost(NamedTuple):
    """What the guest said of a hot-plug ``slot`` (ACPI 6.5, 6.3.5).

    For ``event`` (1 insertion, 3 ejection request, 0x103 ejection by its own user) ``status`` is 0 for
    success and 0x80 to 0x85 for the reasons of a failure.
    """

    slot: int
    event: int
    status: int


class AmlSource(Protocol):
    """A device that describes itself to ACPI."""

    def aml(self) -> bytes:
        """Encoded terms to go into ``\\_SB`` of the DSDT (empty when it has none)."""
        ...


class MsiRouter(Protocol):
    """Turns a signal on an eventfd into an MSI.  Called with the machine lock held."""

    def connect(self, eventfd: int, address: int, data: int) -> None:
        """From now on ``eventfd`` sends this message; a signal that is pending on it does so at once."""
        ...

    def disconnect(self, eventfd: int) -> None:
        """Hold signals back: they stay pending in the eventfd.  No effect when not connected."""
        ...

    def forget(self, eventfd: int) -> None:
        """Disconnect for good and free the route."""
        ...
