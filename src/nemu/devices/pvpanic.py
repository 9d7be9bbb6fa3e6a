"""pvpanic: one byte by which the guest's kernel says that it has panicked.

Source: the pvpanic device specification of QEMU (docs/specs/pvpanic) and Linux'
drivers/misc/pvpanic, which finds the device by the ACPI id QEMU0001.

Threat note: the guest can claim a panic that did not happen, which ends or marks its own
machine.  Each event is reported once, so that a loop of writes costs no log.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntFlag, auto

from nemu.acpi import aml
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import Pages


class Register(Enum):
    EVENTS = auto()


class PanicEvent(IntFlag):
    """PANICKED: the guest's kernel is dead.  CRASH_LOADED: it panicked and starts its crash kernel."""

    PANICKED = 1 << 0
    CRASH_LOADED = 1 << 1


SUPPORTED = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED
REGISTERS = RegisterMap([(Register.EVENTS, 0, 1)], 1)


class PvPanic:
    """A BusHandler over ``pages`` at ``gpa``; ``report`` gets the events not yet reported."""

    def __init__(self, pages: Pages, *, gpa: int, report: Callable[[PanicEvent], None]) -> None:
        self._page = RegisterPage(REGISTERS, pages.view)
        self._page[Register.EVENTS] = SUPPORTED
        self._gpa = gpa
        self._report = report
        self._reported = PanicEvent(0)
        self.read = self._page.read
        self.register_name = REGISTERS.name

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        new = PanicEvent(value & SUPPORTED & ~self._reported)
        if new:
            self._reported |= new
            self._report(new)

    def aml(self) -> bytes:
        return aml.device(
            "PEVT",
            aml.name("_HID", aml.string("QEMU0001")),
            aml.name("_UID", 0),
            aml.name("_STA", 0x0F),
            aml.name("_CRS", aml.resource_template(aml.memory32fixed(self._gpa, REGISTERS.size))),
        )
