"""The IOAPIC of the split interrupt controller: an interrupt line in, a message to a local APIC out.

The local APICs are in the host kernel; this is only the table between them and the few
devices that cannot send messages themselves.  Its lines are edges (interfaces.IrqLine).
Reads are memory: a write to IOREGSEL puts the selected register into IOWIN.

A pin set to level trigger is delivered as an edge as well, and remote IRR stays 0: with
no level behind it, nothing would have to be sent again, and no pin can wedge on an EOI
that never comes.  A masked pin remembers one edge and sends it when unmasked.

Source: Intel 82093AA datasheet, section 3; the EOI register: Intel ICH9 datasheet, 13.5.

Threat note: the guest sends itself whatever interrupts it likes, once for each edge of a
device.  Delivery modes that a device interrupt has no use for (SMI, INIT, start-up,
ExtINT) and vectors below 16 are dropped here and never reach the host kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from threading import Lock

from nemu.arch.x86_64 import layout
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import IrqLine, Pages

_VERSION = 0x20  # the first that has an EOI register
_REG_ID, _REG_VERSION, _REG_ARBITRATION, _REG_TABLE = 0x00, 0x01, 0x02, 0x10
_ID_MASK = 0x0F00_0000

# Redirection table entries (3.2.4), without the read-only delivery status (12) and remote IRR (14).
_VECTOR = 0xFF
_DELIVERY_MODE = 0x700
_LOGICAL = 1 << 11
_MASKED = 1 << 16
_LOW_WRITABLE = 0x0001_AFFF
_HIGH_WRITABLE = 0xFF00_0000
_FIXED, _LOWEST_PRIORITY, _NMI = 0x000, 0x100, 0x400
_FIRST_VECTOR = 16  # Intel SDM volume 3, 11.5.2: the vectors below are illegal

# Message address (Intel SDM volume 3, 11.11.1).
_MESSAGE_LOGICAL = 1 << 2
_MESSAGE_REDIRECTION_HINT = 1 << 3


class Register(Enum):
    IOREGSEL = auto()
    IOWIN = auto()
    EOI = auto()


REGISTERS = RegisterMap(
    [(Register.IOREGSEL, 0x00, 4), (Register.IOWIN, 0x10, 4), (Register.EOI, 0x40, 4)], 0x44
)


class _Pin:
    """One line: an edge becomes the message of its redirection table entry."""

    __slots__ = ("_ioapic", "_number")

    def __init__(self, ioapic: IoApic, number: int) -> None:
        self._ioapic = ioapic
        self._number = number

    def signal(self) -> None:
        self._ioapic.edge(self._number)


class IoApic:
    """A BusHandler over ``pages``; ``send_msi(address, data)`` is called from any thread."""

    def __init__(
        self, pages: Pages, send_msi: Callable[[int, int], None], *, pins: int = layout.IOAPIC_PINS
    ) -> None:
        self._page = RegisterPage(REGISTERS, pages.view)
        self._send_msi = send_msi
        self._pins = pins
        self._lock = Lock()  # an edge may come while a CPU writes the table
        self.read = self._page.read
        self.register_name = REGISTERS.name
        self._id = 0
        self._table = [_MASKED] * pins
        self._waiting = [False] * pins
        self._show()

    def line(self, pin: int) -> IrqLine:
        """The input ``pin``, 0 to pins - 1; its GSI is IOAPIC_GSI_BASE + pin."""
        if not 0 <= pin < self._pins:
            raise ValueError(f"the IOAPIC has pins 0 to {self._pins - 1}, not {pin}")
        return _Pin(self, pin)

    def edge(self, pin: int) -> None:
        """A rising edge at ``pin``."""
        with self._lock:
            entry = self._table[pin]
            self._waiting[pin] = bool(entry & _MASKED)
        if not entry & _MASKED:
            self._deliver(entry)

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        match register:
            case Register.IOREGSEL:
                with self._lock:
                    self._page[register] = value & 0xFF
                    self._show()
            case Register.IOWIN:
                self._store_selected(self._page[Register.IOREGSEL], value)
            case Register.EOI:
                pass  # no remote IRR to clear

    def _store_selected(self, index: int, value: int) -> None:
        pin, high = divmod(index - _REG_TABLE, 2)
        entry = _MASKED
        with self._lock:
            if index == _REG_ID:
                self._id = value & _ID_MASK
            elif 0 <= pin < self._pins:
                kept = self._table[pin]
                if high:
                    self._table[pin] = kept & 0xFFFF_FFFF | (value & _HIGH_WRITABLE) << 32
                else:
                    self._table[pin] = kept & ~0xFFFF_FFFF | value & _LOW_WRITABLE
                if self._waiting[pin] and not self._table[pin] & _MASKED:
                    self._waiting[pin] = False
                    entry = self._table[pin]
            self._show()
        if not entry & _MASKED:
            self._deliver(entry)

    def _show(self) -> None:
        """Put the selected register into IOWIN; the lock is held."""
        index = self._page[Register.IOREGSEL]
        pin, high = divmod(index - _REG_TABLE, 2)
        value = 0
        if 0 <= pin < self._pins:
            value = self._table[pin] >> 32 * high & 0xFFFF_FFFF
        elif index in (_REG_ID, _REG_ARBITRATION):
            value = self._id
        elif index == _REG_VERSION:
            value = (self._pins - 1) << 16 | _VERSION
        self._page[Register.IOWIN] = value

    def _deliver(self, entry: int) -> None:
        mode = entry & _DELIVERY_MODE
        vector = entry & _VECTOR
        if mode not in (_FIXED, _LOWEST_PRIORITY, _NMI) or (mode != _NMI and vector < _FIRST_VECTOR):
            return
        address = layout.LAPIC | (entry >> 56) << 12
        if entry & _LOGICAL:
            address |= _MESSAGE_LOGICAL
        if mode == _LOWEST_PRIORITY:
            address |= _MESSAGE_REDIRECTION_HINT
        self._send_msi(address, mode | vector)
