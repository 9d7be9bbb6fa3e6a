"""The watchdog: unless the guest feeds it in time, the machine does what the user asked for.

Linux has no driver for a virtio watchdog, but one for what ACPI describes: the registers below and a table
(WDAT) that says how to use them.  Source: Hardware Watchdog Timers Design Specification (Microsoft), and
Linux' drivers/watchdog/wdat_wdt.c.

    CONTROL    0x00  u32  bit 0: it runs; setting it starts a new countdown
    COUNTDOWN  0x04  u32  the time-out in periods of 100 ms, 1 to 65535; used from the next start or RESTART
    RESTART    0x08  u32  any write starts a new countdown; reads 0
    REMAINING  0x0C  u32  read-only: periods that are left; 0 while it is stopped
    STATUS     0x10  u32  bit 0: it has run out; writing 1 clears it, a reset of the machine does not

Unlike the other registers these are no memory that the guest reads: REMAINING changes by itself.  Nothing of
the host wakes up for a watchdog that is stopped.

Threat note: the guest can have a timer set anew as often as it likes, which keeps one alive, and let it
expire, which is told once for each start.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from enum import Enum, auto

from nemu.acpi import tables
from nemu.bus.regmap import RegisterMap
from nemu.interfaces import EventLoop, Timer

PERIOD = 0.1  # seconds
MAX_COUNTDOWN = 0xFFFF
DEFAULT_COUNTDOWN = 300  # 30 s, as Linux has it


class Register(Enum):
    CONTROL = auto()
    COUNTDOWN = auto()
    RESTART = auto()
    REMAINING = auto()
    STATUS = auto()


REGISTERS = RegisterMap(
    [
        (Register.CONTROL, 0x00, 4),
        (Register.COUNTDOWN, 0x04, 4),
        (Register.RESTART, 0x08, 4),
        (Register.REMAINING, 0x0C, 4),
        (Register.STATUS, 0x10, 4),
    ],
    size=0x14,
)
RUNNING, EXPIRED = 1, 1


class Sticky:
    """What of a watchdog survives a reset of the machine."""

    def __init__(self) -> None:
        self.status = 0


class Watchdog:
    """A BusHandler and a Clock.  ``expired`` is called when the guest did not feed it; then it is stopped.

    All calls are made with the machine lock held.
    """

    def __init__(self, loop: EventLoop, sticky: Sticky, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._sticky = sticky
        self._expired = expired
        self._countdown = DEFAULT_COUNTDOWN
        self._timer: Timer | None = None
        self._deadline = 0.0
        self._held: float | None = None  # seconds that are left of a countdown while the guest stands still
        self.register_name = REGISTERS.name

    def read(self, offset: int, width: int) -> int:
        return REGISTERS.read(offset, width, self._load)

    def write(self, offset: int, width: int, value: int) -> None:
        REGISTERS.write(offset, width, value, self._store, self._load)

    def stop(self) -> None:
        """A guest that stands still cannot feed it."""
        if self._timer:
            self._held = max(0.0, self._deadline - time.monotonic())
            self._stop()

    def start(self) -> None:
        """Count on from where it was."""
        if self._held is not None:
            self._count(self._held)
            self._held = None

    def close(self) -> None:
        """The machine ends."""
        self._stop()

    def _load(self, register: Register) -> int:
        if register is Register.CONTROL:
            return RUNNING if self._timer else 0
        if register is Register.COUNTDOWN:
            return self._countdown
        if register is Register.REMAINING and self._timer:
            return max(0, round((self._deadline - time.monotonic()) / PERIOD))
        if register is Register.STATUS:
            return self._sticky.status
        return 0

    def _store(self, register: Register, value: int) -> None:
        if register is Register.CONTROL:
            if value & RUNNING:
                self._start()
            else:
                self._stop()
        elif register is Register.COUNTDOWN:
            self._countdown = min(max(value, 1), MAX_COUNTDOWN)
        elif register is Register.RESTART and self._timer:
            self._start()
        elif register is Register.STATUS:
            self._sticky.status &= ~value

    def _start(self) -> None:
        self._stop()
        self._count(self._countdown * PERIOD)

    def _count(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._timer = self._loop.call_later(seconds, self._expire)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self._sticky.status = EXPIRED
        self._expired()


# --- the table -------------------------------------------------------------------------------

_ENABLED = 1
_NO_PCI = struct.pack("<HBBBxxx", 0xFF, 0xFF, 0xFF, 0xFF)
_READ_VALUE, _READ_COUNTDOWN, _WRITE_VALUE, _WRITE_COUNTDOWN = 0, 1, 2, 3

# (action, instruction, register, value, mask); what the machine does in the end is the host's choice, so that
# there are no actions for it.
_INSTRUCTIONS = (
    (0x01, _WRITE_VALUE, Register.RESTART, 1, 1),
    (0x04, _READ_COUNTDOWN, Register.REMAINING, 0, MAX_COUNTDOWN),
    (0x05, _READ_COUNTDOWN, Register.COUNTDOWN, 0, MAX_COUNTDOWN),
    (0x06, _WRITE_COUNTDOWN, Register.COUNTDOWN, 0, MAX_COUNTDOWN),
    (0x08, _READ_VALUE, Register.CONTROL, RUNNING, RUNNING),
    (0x09, _WRITE_VALUE, Register.CONTROL, RUNNING, RUNNING),
    (0x0A, _READ_VALUE, Register.CONTROL, 0, RUNNING),
    (0x0B, _WRITE_VALUE, Register.CONTROL, 0, RUNNING),
    (0x20, _READ_VALUE, Register.STATUS, EXPIRED, EXPIRED),
    (0x21, _WRITE_VALUE, Register.STATUS, EXPIRED, EXPIRED),
)


def table(gpa: int) -> bytes:
    """The WDAT for a watchdog whose registers are at ``gpa``."""
    entries = [_entry(gpa, *one) for one in _INSTRUCTIONS]
    period = round(PERIOD * 1000)
    limits = struct.pack("<IIIBxxxI", period, MAX_COUNTDOWN, 1, _ENABLED, len(entries))
    header_length = 4 + len(_NO_PCI) + len(limits)
    return tables.table(b"WDAT", 1, struct.pack("<I", header_length) + _NO_PCI + limits + b"".join(entries))


def _entry(gpa: int, action: int, instruction: int, register: Register, *operands: int) -> bytes:
    offset, width = REGISTERS.places[register]
    # A generic address structure (ACPI 6.5, 5.2.3.2) in system memory; access size 3 is a dword.
    address = struct.pack("<BBBBQ", 0, 8 * width, 0, 3, gpa + offset)
    return struct.pack("<BBxx", action, instruction) + address + struct.pack("<II", *operands)
