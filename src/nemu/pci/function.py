"""A PCI function: its configuration space, one memory BAR and MSI-X.

Threat: the guest sizes, moves, enables and disables the BAR at any time and in any order, in
halves and with any width.  What the BAR register holds when memory decoding is on is where the
window goes, if that lies in an aperture of the host bridge and nothing else is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nemu.interfaces import PciBar, PciFunctionInfo
from nemu.pci import config, msix

if TYPE_CHECKING:
    from nemu.interfaces import AddressBus, Window
    from nemu.pci.config import ConfigSpace
    from nemu.pci.msix import MsixTable

BAR_64BIT = 0b100  # type bits of a memory BAR; not prefetchable, for a register block has side effects
BAR_FLAGS = 0xF


class PciFunction:
    """``apertures`` are (start, end) ranges that the host bridge forwards; ``bus`` gets the window."""

    def __init__(self, space: ConfigSpace, bus: AddressBus, apertures: Sequence[tuple[int, int]]) -> None:
        self.config = space
        self._bus = bus
        self._apertures = tuple(apertures)
        self._window: Window | None = None
        self._placed_at: int | None = None
        self._msix: MsixTable | None = None
        self._watched: list[tuple[int, int, Callable[[], None]]] = []

    def watch(self, offset: int, length: int, callback: Callable[[], None]) -> None:
        """Call after each guest write that touches ``length`` bytes of the configuration at ``offset``."""
        self._watched.append((offset, offset + length, callback))

    def add_bar(self, window: Window, gpa: int) -> None:
        """BAR 0, 64 bits wide, with ``gpa`` as its value at power-on (decoding is off then)."""
        assert window.size & (window.size - 1) == 0
        self._window = window
        space = self.config
        struct.pack_into("<Q", space.view, config.BAR0, gpa | BAR_64BIT)
        mask = ((1 << 64) - window.size) & ~BAR_FLAGS
        space.allow(config.BAR0, mask.to_bytes(8, "little"))
        self.watch(config.BAR0, 8, self._update_bar)
        self.watch(config.COMMAND, 2, self._update_bar)

    def add_msix(self, table: MsixTable, table_offset: int, pending_offset: int) -> None:
        """The capability for a table and pending bits in BAR 0."""
        body = struct.pack("<HII", len(table.vectors) - 1, table_offset, pending_offset)
        control = self.config.add_capability(msix.CAPABILITY_ID, body, "msix") + 2
        writable = msix.CONTROL_ENABLE | msix.CONTROL_FUNCTION_MASK
        self.config.allow(control, writable.to_bytes(2, "little"))
        self.watch(control, 2, lambda: table.set_control(self.config.u16(control)))
        self._msix = table

    def write_config(self, offset: int, width: int, value: int) -> None:
        self.config.write(offset, width, value)
        for start, end, callback in self._watched:
            if offset < end and start < offset + width:
                callback()

    def describe(self, slot: int) -> PciFunctionInfo:
        """The function in device ``slot`` as it is now."""
        space, window = self.config, self._window
        bars = () if window is None else (PciBar(0, window.size, self._placed_at, True, False),)
        return PciFunctionInfo(
            name="" if window is None else window.name,
            slot=slot,
            vendor=space.u16(config.VENDOR_ID),
            device=space.u16(config.DEVICE_ID),
            subsystem_vendor=space.u16(config.SUBSYSTEM_VENDOR_ID),
            subsystem=space.u16(config.SUBSYSTEM_ID),
            class_code=space.u16(config.CLASS_CODE + 1),
            bars=bars,
        )

    def _update_bar(self) -> None:
        assert self._window is not None
        wanted = self._address() if self.config.u16(config.COMMAND) & config.COMMAND_MEMORY else None
        if wanted == self._placed_at:
            return
        self._placed_at = wanted
        if wanted is None:
            self._bus.withdraw(self._window)
        else:
            self._bus.place(self._window, wanted)

    def _address(self) -> int | None:
        """Where the BAR points, or None outside the apertures."""
        assert self._window is not None
        gpa = struct.unpack_from("<Q", self.config.view, config.BAR0)[0] & ~BAR_FLAGS
        end = gpa + self._window.size
        return gpa if any(start <= gpa and end <= stop for start, stop in self._apertures) else None

    def close(self) -> None:
        if self._window is not None:
            self._bus.withdraw(self._window)
        if self._msix is not None:
            self._msix.close()
