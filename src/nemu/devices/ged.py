"""The generic event device (ACPI 6.5, 5.6.9): one interrupt by which the machine tells the guest of events.

======  ===========  ==============================================================
offset  register     meaning
======  ===========  ==============================================================
0       PENDING      read-only; bit n: event n has happened and is not acknowledged
4       ACKNOWLEDGE  each bit written as 1 clears that bit of PENDING; reads 0
======  ===========  ==============================================================

The guest's ``_EVT`` method reads PENDING, acknowledges just what it read, and only then
acts, until PENDING is 0.  So an event that arrives at any point is either in the next
round of the loop or raises the interrupt anew, and none is lost.

Threat note: the guest can drop its own events or read none; 32 bits are all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntFlag, auto
from types import MappingProxyType

from nemu.acpi import aml
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import IrqLine, Pages

_NOTIFY_BUTTON_PRESSED = 0x80  # ACPI 6.5, 5.6.6


class Register(Enum):
    PENDING = auto()
    ACKNOWLEDGE = auto()


class Event(IntFlag):
    """The bits of PENDING.  A hot-plug controller adds its bit, and its AML to ``handlers``."""

    POWER_BUTTON = 1 << 0
    CPU = 1 << 1
    MEMORY = 1 << 2
    PCI = 1 << 3


REGISTERS = RegisterMap([(Register.PENDING, 0, 4), (Register.ACKNOWLEDGE, 4, 4)], 8)

BUTTON_ONLY: Mapping[Event, bytes] = MappingProxyType(
    {Event.POWER_BUTTON: aml.notify("PWRB", _NOTIFY_BUTTON_PRESSED)}
)


class GenericEventDevice:
    """A BusHandler over ``pages`` at ``gpa`` that signals ``irq``, which is ``gsi`` to the guest.

    ``handlers`` give the AML to run in ``_EVT`` for each event.  Every method is called
    with the machine lock held.
    """

    def __init__(
        self,
        pages: Pages,
        irq: IrqLine,
        *,
        gpa: int,
        gsi: int,
        handlers: Mapping[Event, bytes] = BUTTON_ONLY,
    ) -> None:
        self._page = RegisterPage(REGISTERS, pages.view)
        self._irq = irq
        self._gpa = gpa
        self._gsi = gsi
        self._handlers = handlers
        self.read = self._page.read
        self.register_name = REGISTERS.name

    def power_button(self) -> None:
        """Press the button: the guest is asked to shut down."""
        self.raise_event(Event.POWER_BUTTON)

    def raise_event(self, event: Event) -> None:
        """Make ``event`` pending and tell the guest."""
        self._page[Register.PENDING] |= event
        self._irq.signal()

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        if register is Register.ACKNOWLEDGE:
            self._page[Register.PENDING] &= ~value

    def aml(self) -> bytes:
        """The power button (PNP0C0C) and the event device (ACPI0013)."""
        handle = (aml.if_(aml.and_(aml.local(0), event), code) for event, code in self._handlers.items())
        rounds = aml.while_(aml.store("PEND", aml.local(0)), aml.store(aml.local(0), "ACKN"), *handle)
        button = aml.device("PWRB", aml.name("_HID", aml.eisaid("PNP0C0C")), aml.name("_UID", 0))
        return button + aml.device(
            "GED",
            aml.name("_HID", aml.string("ACPI0013")),
            aml.name("_UID", 0),
            aml.name("_CRS", aml.resource_template(aml.interrupt(self._gsi))),
            aml.system_memory("REGS", self._gpa, REGISTERS.size),
            aml.dword_fields("REGS", "PEND", "ACKN"),
            aml.method("_EVT", 1, rounds),
        )
