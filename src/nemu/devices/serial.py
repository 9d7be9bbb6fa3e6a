"""A 16550A serial port, optional, for early debugging.

It has no line behind it: what is sent leaves at once, so the transmitter is always empty,
and what arrives waits in a bounded buffer until the guest reads it.

Source: the PC16550D datasheet (section 8, registers).

Threat note: the guest may send endless output, which is the writer's to limit, and stop
reading input: ``receive`` then takes no more.  Loopback bytes are dropped when the buffer
is full, with the overrun bit set, as a real port would.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from nemu.acpi import aml
from nemu.bus.regmap import RegisterMap
from nemu.interfaces import IrqLine

RECEIVE_LIMIT = 1024  # bytes that wait for the guest at most

_IER_RECEIVE, _IER_TRANSMIT, _IER_LINE, _IER_MODEM = 0x01, 0x02, 0x04, 0x08
_IIR_NONE, _IIR_LINE, _IIR_RECEIVE, _IIR_TRANSMIT, _IIR_MODEM = 0x01, 0x06, 0x04, 0x02, 0x00
_IIR_FIFO = 0xC0
_FCR_ENABLE, _FCR_CLEAR_RECEIVE = 0x01, 0x02
_LCR_DLAB = 0x80
_MCR_LOOP, _MCR_WRITABLE = 0x10, 0x1F
_LSR_DATA, _LSR_OVERRUN, _LSR_TRANSMITTER_EMPTY = 0x01, 0x02, 0x60
_MSR_CONNECTED = 0xB0  # DCD, DSR, CTS
_MSR_RI = 0x40


class Register(Enum):
    """By port; DATA and IER are the divisor latch while LCR's bit 7 is set."""

    DATA = auto()
    IER = auto()
    IIR_FCR = auto()
    LCR = auto()
    MCR = auto()
    LSR = auto()
    MSR = auto()
    SCR = auto()


REGISTERS = RegisterMap([(register, offset, 1) for offset, register in enumerate(Register)], 8)


class Serial:
    """A BusHandler for 8 ports from ``port`` on, signalling ``irq``, which is ``gsi`` to the guest.

    ``send`` gets each byte that the guest transmits.  ``drained`` is called when the buffer was
    full and the guest has read it empty.  Every method is called with the machine lock held.
    """

    def __init__(
        self,
        irq: IrqLine,
        send: Callable[[bytes], None],
        drained: Callable[[], None],
        *,
        port: int,
        gsi: int,
    ) -> None:
        self._irq = irq
        self._send = send
        self._drained = drained
        self._port = port
        self._gsi = gsi
        self.register_name = REGISTERS.name
        self._ier = self._fcr = self._lcr = self._mcr = self._scr = 0
        self._divisor = 12  # 9600 baud
        self._input = bytearray()
        self._was_full = False
        self._overrun = False
        self._transmit_event = False  # the transmitter became empty and no IIR read has said so
        self._modem_delta = 0
        self._asserted = False

    @property
    def room(self) -> int:
        """How many bytes of input ``receive`` would take."""
        return RECEIVE_LIMIT - len(self._input)

    def receive(self, data: bytes | memoryview) -> int:
        """Take input for the guest; returns how many bytes fitted, the rest is to be offered again."""
        taken = min(len(data), self.room)
        self._input += data[:taken]
        self._was_full = not self.room
        self._update_irq()
        return taken

    def read(self, offset: int, width: int) -> int:
        return REGISTERS.read(offset, width, self._load)

    def write(self, offset: int, width: int, value: int) -> None:
        # The last argument is never called: a write covers one-byte registers wholly.
        REGISTERS.write(offset, width, value, self._store, self._load)

    def aml(self) -> bytes:
        return aml.device(
            "COM1",
            aml.name("_HID", aml.eisaid("PNP0501")),
            aml.name("_UID", 0),
            aml.name(
                "_CRS", aml.resource_template(aml.io(self._port, REGISTERS.size), aml.interrupt(self._gsi))
            ),
        )

    def _load(self, register: Register) -> int:
        latch = self._lcr & _LCR_DLAB
        match register:
            case Register.DATA:
                value = self._divisor & 0xFF if latch else self._take()
            case Register.IER:
                value = self._divisor >> 8 if latch else self._ier
            case Register.IIR_FCR:
                value = self._identify()
            case Register.LCR:
                value = self._lcr
            case Register.MCR:
                value = self._mcr
            case Register.LSR:
                value = self._line_status() | (_LSR_OVERRUN if self._overrun else 0)
                self._overrun = False
            case Register.MSR:
                value = self._modem_lines() | self._modem_delta
                self._modem_delta = 0
            case Register.SCR:
                value = self._scr
        self._update_irq()
        return value

    def _store(self, register: Register, value: int) -> None:
        latch = self._lcr & _LCR_DLAB
        match register:
            case Register.DATA if latch:
                self._divisor = self._divisor & 0xFF00 | value
            case Register.DATA:
                self._transmit(value)
            case Register.IER if latch:
                self._divisor = self._divisor & 0xFF | value << 8
            case Register.IER:
                self._transmit_event |= bool(value & ~self._ier & _IER_TRANSMIT)
                self._ier = value & 0x0F
            case Register.IIR_FCR:
                self._fcr = value & _FCR_ENABLE
                if value & _FCR_CLEAR_RECEIVE:
                    self._input.clear()
                    self._resume()
            case Register.LCR:
                self._lcr = value
            case Register.MCR:
                before = self._modem_lines()
                self._mcr = value & _MCR_WRITABLE
                self._note_modem_change(before)
            case Register.SCR:
                self._scr = value
            case Register.LSR | Register.MSR:
                pass  # read-only
        self._update_irq()

    def _take(self) -> int:
        if not self._input:
            return 0
        value = self._input.pop(0)
        self._resume()
        return value

    def _resume(self) -> None:
        if self._was_full and not self._input:
            self._was_full = False
            self._drained()

    def _transmit(self, value: int) -> None:
        self._transmit_event = True
        if not self._mcr & _MCR_LOOP:
            self._send(bytes((value,)))
        elif self.room:
            self._input.append(value)
        else:
            self._overrun = True

    def _line_status(self) -> int:
        return _LSR_TRANSMITTER_EMPTY | (_LSR_DATA if self._input else 0)

    def _modem_lines(self) -> int:
        """MSR's upper half; in loopback the port's own outputs: DTR, RTS, OUT1, OUT2."""
        if not self._mcr & _MCR_LOOP:
            return _MSR_CONNECTED
        data_ready, request, out = self._mcr & 1, self._mcr >> 1 & 1, self._mcr >> 2 & 3
        return out << 6 | data_ready << 5 | request << 4

    def _note_modem_change(self, before: int) -> None:
        changed = before ^ self._modem_lines()
        ring_ended = before & changed & _MSR_RI  # RI alone counts only its trailing edge
        self._modem_delta |= (changed & ~_MSR_RI | ring_ended) >> 4

    def _cause(self) -> int:
        """The enabled interrupt of highest priority, as IIR names it."""
        if self._ier & _IER_LINE and self._overrun:
            return _IIR_LINE
        if self._ier & _IER_RECEIVE and self._input:
            return _IIR_RECEIVE
        if self._ier & _IER_TRANSMIT and self._transmit_event:
            return _IIR_TRANSMIT
        if self._ier & _IER_MODEM and self._modem_delta:
            return _IIR_MODEM
        return _IIR_NONE

    def _identify(self) -> int:
        cause = self._cause()
        if cause == _IIR_TRANSMIT:
            self._transmit_event = False  # reading it is the acknowledgement
        return cause | (_IIR_FIFO if self._fcr else 0)

    def _update_irq(self) -> None:
        """An edge when a cause appears where there was none."""
        asserted = self._cause() != _IIR_NONE
        if asserted and not self._asserted:
            self._irq.signal()
        self._asserted = asserted
