"""The window in configuration space through which a driver reaches BAR 0 unmapped (virtio 1.2, 4.1.4.9).

The driver writes bar, offset and length, then reads or writes ``pci_cfg_data``.  Configuration
reads are memory here, so what a read shall give is put there when the driver writes to the
capability; a driver that polls a register through the window writes ``offset`` before each read.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemu.interfaces import BusHandler
    from nemu.pci.function import PciFunction

CAP_VENDOR = 0x09
CAP_PCI = 5
_BAR, _OFFSET, _LENGTH, _DATA, _SIZE = 4, 8, 12, 16, 20  # places in the capability
WIDTHS = (1, 2, 4)


class ConfigAccess:
    """Adds the capability to ``function``; ``handler`` answers BAR 0, which has ``size`` bytes."""

    def __init__(self, function: PciFunction, handler: BusHandler, size: int) -> None:
        self._config = function.config
        self._handler = handler
        self._size = size
        body = bytes([_SIZE, CAP_PCI]).ljust(_SIZE - 2, b"\0")
        self._start = start = function.config.add_capability(CAP_VENDOR, body, "virtio_cap5")
        function.config.allow(start + _BAR, b"\xff")
        function.config.allow(start + _OFFSET, b"\xff" * (_SIZE - _OFFSET))
        function.watch(start + _BAR, _DATA - _BAR, self._load)
        function.watch(start + _DATA, _SIZE - _DATA, self._store)

    def _target(self) -> tuple[int, int] | None:
        """(offset, width) of the access that is set up; None where the specification forbids it."""
        bar, offset, width = struct.unpack_from("<B3xII", self._config.view, self._start + _BAR)
        allowed = bar == 0 and width in WIDTHS and offset % width == 0 and offset + width <= self._size
        return (offset, width) if allowed else None

    def _load(self) -> None:
        target = self._target()
        if target is not None:
            self._config.set_u32(self._start + _DATA, self._handler.read(*target))

    def _store(self) -> None:
        target = self._target()
        if target is not None:
            value = self._config.u32(self._start + _DATA) & ((1 << 8 * target[1]) - 1)
            self._handler.write(*target, value)
