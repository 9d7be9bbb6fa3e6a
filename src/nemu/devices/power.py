"""Power: the sleep and reset registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.6, 4.8.3.7).

Threat note: the guest can stop or reset its own machine here, which is its right, and
nothing else.  A call-back may come any number of times, once for each guest write.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from nemu.acpi.tables import S5_SLEEP_TYPE
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import Pages

RESET_VALUE = 0x52

_SLP_TYP_SHIFT = 2
_SLP_TYP_MASK = 0x7
_SLP_EN = 0x20


class Register(Enum):
    SLEEP_CONTROL = auto()
    SLEEP_STATUS = auto()
    RESET = auto()


# One page for all three: Linux maps the reset register's page at boot, so that the sleep
# registers are mapped as well when it powers off with interrupts disabled.
REGISTERS = RegisterMap(
    [(Register.SLEEP_CONTROL, 0, 1), (Register.SLEEP_STATUS, 1, 1), (Register.RESET, 2, 1)], 4
)


class PowerControl:
    """A BusHandler over ``pages``; ``power_off`` and ``reset`` are called in the thread of the access."""

    def __init__(self, pages: Pages, *, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        self._page = RegisterPage(REGISTERS, pages.view)
        self._power_off = power_off
        self._reset = reset
        self.read = self._page.read
        self.register_name = REGISTERS.name

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        match register:
            case Register.SLEEP_CONTROL:
                sleep_type = value >> _SLP_TYP_SHIFT & _SLP_TYP_MASK
                self._page[register] = sleep_type << _SLP_TYP_SHIFT  # SLP_EN is write-only
                if value & _SLP_EN and sleep_type == S5_SLEEP_TYPE:
                    self._power_off()
            case Register.SLEEP_STATUS:
                pass  # WAK_STS never comes: no state but S5 is offered
            case Register.RESET:
                if value == RESET_VALUE:
                    self._reset()
