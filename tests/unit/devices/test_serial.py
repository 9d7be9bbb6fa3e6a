"""The 16550A as Linux' 8250 driver uses it, and as no driver would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.irq import FakeIrq
from nemu.devices.serial import RECEIVE_LIMIT, Serial

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
IER_RECEIVE, IER_TRANSMIT, IER_LINE, IER_MODEM = 1, 2, 4, 8
LOOP = 0x10


class Port:
    def __init__(self) -> None:
        self.irq = FakeIrq()
        self.sent = bytearray()
        self.drained = 0
        self.serial = Serial(self.irq, self.sent.extend, self._count, port=0x3F8, gsi=17)

    def _count(self) -> None:
        self.drained += 1

    def out(self, register: int, value: int) -> None:
        self.serial.write(register, 1, value)

    def inb(self, register: int) -> int:
        return self.serial.read(register, 1)


@pytest.fixture
def port() -> Port:
    return Port()


def test_it_probes_as_a_16550a(port: Port) -> None:
    """Linux' autoconfig(): IER sticks in its low half, loopback shows in MSR, IIR shows the FIFO."""
    port.out(IER, 0x0F)
    assert port.inb(IER) == 0x0F
    port.out(IER, 0)
    assert port.inb(IER) == 0
    port.out(MCR, LOOP | 0x0A)
    assert port.inb(MSR) & 0xF0 == 0x90
    port.out(MCR, 0)
    port.out(FCR, 1)
    assert port.inb(IIR) >> 6 == 3
    port.out(SCR, 0x5A)
    assert port.inb(SCR) == 0x5A


def test_no_register_of_a_16650_or_16750_shows(port: Port) -> None:
    port.out(FCR, 1)
    port.out(LCR, 0x80)
    assert port.inb(IIR) != 0  # EFR of a 16650 would read 0 here
    port.out(LCR, 0xBF)
    assert port.inb(IIR) != 0
    port.out(LCR, 0)
    port.out(IER, 0x40)
    assert port.inb(IER) == 0  # UUE of an XScale port would stick


def test_output_leaves_at_once(port: Port) -> None:
    for byte in b"hello":
        assert port.inb(LSR) & 0x60 == 0x60
        port.out(DATA, byte)
    assert port.sent == b"hello"


def test_the_divisor_latch_hides_data_and_ier(port: Port) -> None:
    port.out(LCR, 0x83)
    port.out(DATA, 0x01)
    port.out(IER, 0x02)
    assert (port.inb(DATA), port.inb(IER)) == (0x01, 0x02)
    port.out(LCR, 0x03)
    assert port.inb(IER) == 0
    assert port.sent == b""


def test_enabling_the_transmit_interrupt_raises_it_and_reading_iir_acknowledges(port: Port) -> None:
    port.out(IER, IER_TRANSMIT)
    assert port.irq.count == 1
    assert port.inb(IIR) & 0x0F == 2
    assert port.inb(IIR) & 0x0F == 1
    port.out(IER, 0)
    port.out(IER, IER_TRANSMIT)  # the 8250 driver's test for a lost interrupt
    assert port.irq.count == 2
    assert port.inb(IIR) & 0x0F == 2


def test_sixteen_bytes_cost_one_interrupt(port: Port) -> None:
    port.out(IER, IER_TRANSMIT)
    port.inb(IIR)
    for byte in range(16):
        port.out(DATA, byte)
    assert port.irq.count == 2


def test_input_interrupts_and_is_read_in_order(port: Port) -> None:
    port.out(IER, IER_RECEIVE)
    assert port.serial.receive(b"abc") == 3
    assert port.irq.count == 1
    assert port.inb(IIR) & 0x0F == 4
    assert bytes(port.inb(DATA) for _ in range(3)) == b"abc"
    assert port.inb(LSR) & 1 == 0
    assert port.inb(IIR) & 0x0F == 1
    port.serial.receive(b"d")
    assert port.irq.count == 2


def test_input_before_the_driver_is_there_waits(port: Port) -> None:
    port.serial.receive(b"x")
    assert port.irq.count == 0
    port.out(IER, IER_RECEIVE)
    assert port.irq.count == 1


def test_a_full_buffer_refuses_and_says_when_there_is_room(port: Port) -> None:
    assert port.serial.room == RECEIVE_LIMIT
    assert port.serial.receive(bytes(RECEIVE_LIMIT + 5)) == RECEIVE_LIMIT
    assert port.serial.room == 0
    assert port.serial.receive(b"more") == 0
    for _ in range(RECEIVE_LIMIT):
        assert port.drained == 0
        port.inb(DATA)
    assert port.drained == 1
    assert port.serial.receive(b"more") == 4


def test_clearing_the_buffer_lets_a_refused_source_continue(port: Port) -> None:
    port.serial.receive(bytes(RECEIVE_LIMIT + 1))
    port.out(FCR, 3)
    assert port.drained == 1
    assert port.inb(LSR) & 1 == 0


def test_loopback_returns_bytes_and_sends_none(port: Port) -> None:
    port.out(MCR, LOOP)
    port.out(DATA, 0x42)
    assert port.inb(LSR) & 1 == 1
    assert port.inb(DATA) == 0x42
    assert port.sent == b""


def test_loopback_overruns_instead_of_growing(port: Port) -> None:
    port.out(MCR, LOOP)
    port.out(IER, IER_LINE)
    for _ in range(RECEIVE_LIMIT + 10):
        port.out(DATA, 1)
    assert port.inb(IIR) & 0x0F == 6
    assert port.inb(LSR) & 2 == 2
    assert port.inb(LSR) & 2 == 0
    assert sum(1 for _ in iter(lambda: port.inb(LSR) & 1 and port.inb(DATA), 0)) == RECEIVE_LIMIT


def test_modem_deltas_are_told_once(port: Port) -> None:
    port.out(MCR, LOOP)
    port.inb(MSR)
    port.out(IER, IER_MODEM)
    port.out(MCR, LOOP | 0x02)  # RTS loops to CTS
    assert port.irq.count == 1
    assert port.inb(IIR) & 0x0F == 0
    assert port.inb(MSR) == 0x11
    assert port.inb(MSR) == 0x10
    assert port.inb(IIR) & 0x0F == 1


def test_wide_accesses_reach_each_register(port: Port) -> None:
    port.serial.write(LCR, 2, 0x0B03)
    assert port.inb(LCR) == 0x03
    assert port.inb(MCR) == 0x0B
    assert port.serial.read(LCR, 4) == 0xB060_0B03


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 8), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("read"), st.integers(0, 7), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("receive"), st.just(0), st.just(1), st.integers(0, 2000)),
)


@given(st.lists(steps, max_size=40))
def test_any_access_is_answered_and_nothing_grows(script: list[tuple[str, int, int, int]]) -> None:
    port = Port()
    for kind, offset, width, value in script:
        before = port.irq.count + len(port.sent)
        if kind == "write":
            port.serial.write(offset, width, value)
        elif kind == "read":
            assert 0 <= port.serial.read(offset, width) < 1 << 8 * width
        else:
            assert port.serial.receive(bytes(value)) <= RECEIVE_LIMIT
        assert port.irq.count + len(port.sent) <= before + 1 + 8
    port.serial.write(MCR, 1, 0)
    port.serial.write(LCR, 1, 0)
    waiting = 0
    while port.inb(LSR) & 1:
        port.inb(DATA)
        waiting += 1
    assert waiting <= RECEIVE_LIMIT
