"""vCPU threads: what each kind of exit becomes, and how they end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from fakes.bus import FakeHandler
from fakes.vcpu import Exit, FakeVcpu
from nemu.bus.address_space import AddressSpace
from nemu.errors import GuestCrashError
from nemu.interfaces import Window
from nemu.kvm import abi
from nemu.kvm.handles import Vcpu
from nemu.kvm.vcpu import KICK_SIGNAL, VcpuThread


@pytest.fixture(autouse=True)
def _harmless_kick() -> Iterator[None]:
    before = signal.signal(KICK_SIGNAL, lambda *_: None)
    yield
    signal.signal(KICK_SIGNAL, before)


class Wired:
    def __init__(self, *exits: Exit) -> None:
        self.vcpu = FakeVcpu(*exits)
        self.memory, self.ports = FakeHandler(0x8877_6655_4433_2211), FakeHandler(0xAABB_CCDD)
        memory_bus, port_bus = AddressSpace(), AddressSpace()
        memory_bus.place(Window("device", 0x1000, self.memory), 0x1_0000_0000)
        port_bus.place(Window("port", 8, self.ports), 0x3F8)
        self.lock = threading.RLock()
        self.errors: list[BaseException] = []
        self.thread = VcpuThread(
            0,
            self.vcpu,  # type: ignore[arg-type]
            memory_bus=memory_bus,
            port_bus=port_bus,
            lock=self.lock,
            failed=self.errors.append,
        )

    def run(self) -> None:
        """Until the script is over."""
        self.thread.start()
        while self.thread.is_alive() and not self.vcpu.halted.wait(0.001):
            pass
        self.thread.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def mmio(address: int, width: int, value: int | None = None) -> Exit:
    def exit_(vcpu: FakeVcpu) -> bool:
        vcpu.run.exit_reason = abi.KVM_EXIT_MMIO
        access = vcpu.run.mmio
        access.phys_addr, access.len, access.is_write = address, width, value is not None
        access.data[:] = (value or 0).to_bytes(8, "little")
        return True

    return exit_


def port(number: int, size: int, count: int, data: bytes | None = None) -> Exit:
    def exit_(vcpu: FakeVcpu) -> bool:
        vcpu.run.exit_reason = abi.KVM_EXIT_IO
        access = vcpu.run.io
        access.direction = 0 if data is None else abi.KVM_EXIT_IO_OUT
        access.size, access.port, access.count, access.data_offset = size, number, count, vcpu.DATA
        vcpu.set_data(data or bytes(size * count))
        return True

    return exit_


def reason(number: int) -> Exit:
    def exit_(vcpu: FakeVcpu) -> bool:
        vcpu.run.exit_reason = number
        return True

    return exit_


@pytest.mark.parametrize("width", range(1, 9))
def test_an_mmio_write_keeps_its_width_and_low_bytes(width: int) -> None:
    wired = Wired(mmio(0x1_0000_0010, width, 0x0102_0304_0506_0708))
    wired.run()
    assert wired.memory.calls == [("write", 0x10, width, 0x0102_0304_0506_0708 & (1 << 8 * width) - 1)]


@pytest.mark.parametrize("width", range(1, 9))
def test_an_mmio_read_gives_its_bytes_to_the_cpu(width: int) -> None:
    wired = Wired(mmio(0x1_0000_0010, width))
    wired.run()
    assert bytes(wired.vcpu.run.mmio.data) == bytes.fromhex("1122334455667788")[:width].ljust(8, b"\0")


def test_an_mmio_read_of_nothing_is_all_ones() -> None:
    wired = Wired(mmio(0xDEAD_BEEF_0000, 8))
    wired.run()
    assert bytes(wired.vcpu.run.mmio.data) == b"\xff" * 8


def test_a_string_output_is_one_write_each() -> None:
    wired = Wired(port(0x3F8, 2, 3, b"\x01\x02\x03\x04\x05\x06"))
    wired.run()
    assert wired.ports.calls == [("write", 0, 2, 0x0201), ("write", 0, 2, 0x0403), ("write", 0, 2, 0x0605)]


def test_a_string_input_is_one_read_each() -> None:
    wired = Wired(port(0x3F8, 4, 2), port(0x60, 1, 3))
    wired.vcpu.set_data(bytes(16))
    wired.run()
    assert wired.ports.calls == [("read", 0, 4)] * 2
    assert wired.vcpu.data(4) == b"\xff\xff\xff\xaa"  # the second one: no such port


def test_exits_are_counted_by_kind_and_interruptions_are_none() -> None:
    wired = Wired(
        mmio(0, 1),
        lambda _: False,
        port(0, 1, 1),
        mmio(0, 1, 1),
        reason(abi.KVM_EXIT_INTR),
        reason(abi.KVM_EXIT_INTR),
    )
    before = time.monotonic()
    wired.run()
    assert wired.thread.exits == {"mmio": 2, "io": 1, "intr": 2}
    assert before <= wired.thread.first_run <= time.monotonic()
    assert wired.errors == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (abi.KVM_EXIT_SHUTDOWN, "triple fault"),
        (abi.KVM_EXIT_INTERNAL_ERROR, "internal error"),
        (abi.KVM_EXIT_FAIL_ENTRY, "refused its state"),
        (abi.KVM_EXIT_HLT, "unexpected exit 5"),
        (12345, "unexpected exit 12345"),
    ],
)
def test_an_end_of_the_guest_is_a_guest_crash(number: int, text: str) -> None:
    wired = Wired(reason(number))
    wired.run()
    (error,) = wired.errors
    assert isinstance(error, GuestCrashError)
    assert text in str(error)


def test_whatever_a_handler_raises_is_reported_and_ends_only_the_thread() -> None:
    class Broken(FakeHandler):
        def write(self, offset: int, width: int, value: int) -> None:
            raise ZeroDivisionError

    wired = Wired(mmio(0x1_0000_0000, 4, 1))
    wired.memory.__class__ = Broken
    wired.run()
    assert isinstance(wired.errors[0], ZeroDivisionError)


def test_handlers_run_with_the_machine_lock_held() -> None:
    wired = Wired(mmio(0x1_0000_0000, 4, 1))
    with wired.lock:
        wired.thread.start()
        time.sleep(0.02)
        assert wired.memory.calls == []
    assert wired.vcpu.halted.wait(10)
    assert len(wired.memory.calls) == 1
    wired.thread.stop()
    wired.thread.join()


def test_an_access_that_waited_while_the_machine_ended_is_not_made() -> None:
    wired = Wired(mmio(0x1_0000_0000, 4, 1), port(0x3F8, 1, 1, b"x"))
    with wired.lock:
        wired.thread.start()
        time.sleep(0.02)
        wired.thread.stop()
    wired.thread.join(10)
    assert wired.memory.calls == wired.ports.calls == []


def test_stopping_before_the_start_and_after_the_end_is_harmless() -> None:
    wired = Wired()
    wired.thread.stop()
    wired.thread.start()
    wired.thread.join(10)
    assert not wired.thread.is_alive()
    wired.thread.stop()


def test_a_vcpu_closes_while_the_traceback_of_an_error_holds_its_run_page() -> None:
    import os

    fd = os.memfd_create("vcpu")
    os.ftruncate(fd, 8192)
    vcpu = Vcpu(fd, 8192)
    part = vcpu.run.mmio
    vcpu.close()
    assert vcpu.fd == -1
    assert part.len == 0
    vcpu.close()


def stopped(wired: Wired) -> None:
    wired.thread.stop()
    wired.thread.join(10)
    assert not wired.thread.is_alive()


def test_a_paused_cpu_is_out_of_the_guest_until_it_is_resumed() -> None:
    entries: list[int] = []

    def enter(vcpu: FakeVcpu) -> bool:
        entries.append(vcpu.run.immediate_exit)
        return False

    wired = Wired(*[enter] * 3)
    wired.thread.start()
    assert wired.vcpu.halted.wait(10)
    with wired.lock:
        wired.thread.pause()
        wired.thread.wait_paused()
    wired.vcpu.halted.clear()
    assert not wired.vcpu.halted.wait(0.05), "it went back in"
    wired.thread.resume()
    assert wired.vcpu.halted.wait(10)
    stopped(wired)
    assert entries == [0, 0, 0]


def test_a_cpu_that_is_paused_before_its_start_has_not_run() -> None:
    wired = Wired(mmio(0x1_0000_0000, 4, 1))
    wired.thread.pause()
    wired.thread.start()
    wired.thread.wait_paused()
    time.sleep(0.05)
    assert (wired.thread.first_run, wired.memory.calls) == (0.0, [])
    before = time.monotonic()
    wired.thread.resume()
    assert wired.vcpu.halted.wait(10)
    assert wired.thread.first_run >= before
    assert len(wired.memory.calls) == 1
    stopped(wired)


@pytest.mark.parametrize("access", [mmio(0x1_0000_0010, 4, 7), port(0x3F8, 1, 1, b"x")])
def test_an_access_that_is_under_way_at_a_pause_is_made_at_the_resume(access: Exit) -> None:
    wired = Wired(access)
    with wired.lock:  # the access waits for it
        wired.thread.start()
        time.sleep(0.02)
        wired.thread.pause()
        wired.thread.wait_paused()
    time.sleep(0.05)
    assert wired.memory.calls + wired.ports.calls == []
    wired.thread.resume()
    assert wired.vcpu.halted.wait(10)
    assert len(wired.memory.calls + wired.ports.calls) == 1
    stopped(wired)


def test_a_paused_cpu_ends_without_making_its_access() -> None:
    wired = Wired(mmio(0x1_0000_0010, 4, 7))
    with wired.lock:
        wired.thread.start()
        time.sleep(0.02)
        wired.thread.pause()
        wired.thread.wait_paused()
    stopped(wired)
    assert wired.memory.calls == []


def test_a_resume_does_not_take_a_stop_back() -> None:
    wired = Wired()
    wired.thread.start()
    assert wired.vcpu.halted.wait(10)
    wired.thread.pause()
    wired.thread.stop()
    wired.thread.resume()
    wired.thread.join(10)
    assert not wired.thread.is_alive()
    assert wired.vcpu.run.immediate_exit == 1


def test_many_pauses_in_a_row_neither_hang_nor_lose_an_access() -> None:
    accesses = 500

    def write(vcpu: FakeVcpu) -> bool:
        time.sleep(0.0001)  # in the guest
        return mmio(0x1_0000_0010, 4, 7)(vcpu)

    wired = Wired(*[write] * accesses)
    wired.thread.start()
    pauses = 0
    while not wired.vcpu.halted.is_set():
        with wired.lock:
            wired.thread.pause()
            wired.thread.wait_paused()
            wired.thread.resume()
        pauses += 1
        time.sleep(0.0001)
    stopped(wired)
    assert pauses > 10
    assert len(wired.memory.calls) == accesses
    assert wired.errors == []


def test_a_pause_and_a_stop_at_once_end_the_thread_and_hold_nobody_up() -> None:
    for _ in range(50):
        wired = Wired()
        wired.thread.start()
        stopper = threading.Thread(target=wired.thread.stop)
        with wired.lock:
            stopper.start()
            wired.thread.pause()
            wired.thread.wait_paused()
        stopper.join()
        wired.thread.pause()
        wired.thread.wait_paused()
        wired.thread.join(10)
        assert not wired.thread.is_alive()
