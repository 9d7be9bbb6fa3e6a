"""The PCIe host bridge: bus 0 of segment 0 and its ECAM (PCI Express Base 5.0, section 7.2.2).

The configuration spaces of bus 0 are 1 MiB of pages that the guest reads without an exit; they
read all-ones where no function is.  Buses above 0 do not exist: there is no bridge to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nemu.bus.regmap import ones
from nemu.interfaces import PciFunctionInfo, Window
from nemu.pci import config
from nemu.pci.config import SIZE, ConfigSpace
from nemu.pci.function import PciFunction

if TYPE_CHECKING:
    from nemu.interfaces import AddressBus, Pages

BUS_SIZE = 1 << 20  # 32 devices of 8 functions of 4 KiB
DEVICES = 32
HOST_BRIDGE_CLASS = 0x060000
VENDOR_INTEL = 0x8086
DEVICE_HOST_BRIDGE = 0x0D57  # the host bridge of NEMU's virt and of Cloud Hypervisor


class HostBridge:
    """Root bus ``pcie.0``.  ``pages`` are BUS_SIZE bytes; ``apertures`` are the PCI memory windows.

    As a BusHandler it takes the writes to the ECAM window, and the reads of buses above 0.
    """

    def __init__(
        self, bus: AddressBus, pages: Pages, ecam: int, ecam_size: int, apertures: Sequence[tuple[int, int]]
    ) -> None:
        self._bus = bus
        self._pages = pages
        self._apertures = [(start, end) for start, end in apertures if start < end]
        self._next_bar = [start for start, _ in self._apertures]
        self._functions: dict[int, PciFunction] = {}
        self._bars: dict[tuple[int, int], int] = {}  # (slot, size) -> power-on address, ever after
        pages.view[:] = b"\xff" * BUS_SIZE
        self.window = Window("ecam", ecam_size, self, pages)
        self.add_function(0, vendor=VENDOR_INTEL, device=DEVICE_HOST_BRIDGE, class_code=HOST_BRIDGE_CLASS)
        bus.place(self.window, ecam)

    def add_function(self, slot: int, *, vendor: int, device: int, class_code: int) -> PciFunction:
        """A function 0 in device ``slot`` (0 to 31)."""
        assert 0 <= slot < DEVICES
        assert slot not in self._functions
        start = slot * 8 * SIZE
        space = ConfigSpace(
            self._pages.view[start : start + SIZE],
            vendor=vendor,
            device=device,
            class_code=class_code,
            revision=1,
        )
        function = PciFunction(space, self._bus, self._apertures)
        self._functions[slot] = function
        return function

    def describe(self) -> list[PciFunctionInfo]:
        """Every function of the bus, by slot."""
        return [function.describe(slot) for slot, function in sorted(self._functions.items())]

    def free_slot(self) -> int | None:
        """The lowest device number without a function."""
        return next((slot for slot in range(DEVICES) if slot not in self._functions), None)

    def is_free(self, slot: int) -> bool:
        """Whether a function can be put into device ``slot``."""
        return 0 <= slot < DEVICES and slot not in self._functions

    def remove_function(self, slot: int) -> None:
        """Device ``slot``, whose function was closed, reads all-ones from now on."""
        del self._functions[slot]
        start = slot * 8 * SIZE
        self._pages.view[start : start + SIZE] = b"\xff" * SIZE

    def inert_registers(self) -> Iterator[int]:
        """Offsets in ECAM of BAR and ROM registers that are wired to 0; a guest writes each to size it."""
        for slot, function in self._functions.items():
            for register in (*config.BARS, config.ROM):
                if function.config.is_fixed(register, 4):
                    yield slot * 8 * SIZE + register

    def allocate(self, slot: int, size: int) -> int:
        """A power-on address for a BAR of ``size`` bytes (a power of two), in the last aperture with room.

        What comes to a slot later has the address of what was there before.
        """
        if (slot, size) not in self._bars:
            self._bars[slot, size] = self._allocate(size)
        return self._bars[slot, size]

    def _allocate(self, size: int) -> int:
        for index in reversed(range(len(self._apertures))):
            start = -(-self._next_bar[index] // size) * size
            if start + size <= self._apertures[index][1]:
                self._next_bar[index] = start + size
                return start
        raise ValueError(f"no PCI window has {size:#x} bytes left")

    def read(self, offset: int, width: int) -> int:
        return ones(width)  # only buses above 0 come here, and they have no function

    def write(self, offset: int, width: int, value: int) -> None:
        page, register = divmod(offset, SIZE)
        slot, number = divmod(page, 8)
        function = self._functions.get(slot)
        if function is not None and number == 0:
            function.write_config(register, width, value)

    def register_name(self, offset: int) -> str:
        page, register = divmod(offset, SIZE)
        bus, rest = divmod(page, 256)
        slot, number = divmod(rest, 8)
        function = self._functions.get(slot) if bus == number == 0 else None
        name = function.config.register_name(register) if function else f"{register:#x}"
        return f"{bus:02x}:{slot:02x}.{number} {name}"

    def close(self) -> None:
        for function in self._functions.values():
            function.close()
