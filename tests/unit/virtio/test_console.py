"""The console device on a character backend that the test plays."""

from __future__ import annotations

import struct

import pytest

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends.chardev import Chardev, NullChardev
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.console import F_SIZE, RECEIVE, SETTLE, TRANSMIT, VirtioConsole


class FakeChardev(Chardev):
    """``typed`` is the input that waits, ``room`` how many bytes of output are taken."""

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.typed = b""
        self.shown = b""
        self.room = 1 << 30
        self.dimensions = size
        self.reads: list[int] = []

    @property
    def size(self) -> tuple[int, int] | None:
        return self.dimensions

    def read(self, limit: int) -> bytes:
        self.reads.append(limit)
        data, self.typed = self.typed[:limit], self.typed[limit:]
        return data

    def write(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        self.room -= taken
        self.shown += data[:taken]
        return taken

    def type(self, data: bytes) -> None:
        self.typed += data
        self._readable()

    def make_room(self, size: int) -> None:
        self.room += size
        self._writable()

    def resize(self, size: tuple[int, int]) -> None:
        self.dimensions = size
        self._changed()


class Rig:
    """A console that is active, with a driver on each queue."""

    def __init__(self, ram: GuestRam, transport: FakeTransport, size: tuple[int, int] | None = None) -> None:
        self.backend = FakeChardev(size)
        self.loop = FakeLoop()
        self.device = VirtioConsole("virtio-console0", self.backend, self.loop)
        self.input = Driver(ram, 8, base=0x10000, end=0x80000, event_idx=True)
        self.output = Driver(ram, 8, base=0x80000, end=0x100000, event_idx=True)
        self.transport = transport
        self.activate()

    def activate(self) -> None:
        self.device.activate(self.device.features, (self.input.queue(), self.output.queue()), self.transport)
        self.settle()

    def settle(self) -> None:
        """Let the time pass in which input waits for the driver."""
        timers, self.loop.timers = self.loop.timers, []
        assert [timer.seconds for timer in timers] == [SETTLE]
        for timer in timers:
            timer.expire()


@pytest.fixture
def rig(ram: GuestRam, transport: FakeTransport) -> Rig:
    return Rig(ram, transport)


def test_output_goes_to_the_backend_in_order(rig: Rig) -> None:
    for text in (b"Hello, ", b"world", b"!\r\n"):
        rig.output.add([text])
    rig.device.notify(TRANSMIT)
    assert rig.backend.shown == b"Hello, world!\r\n"
    assert len(rig.output.collect()) == 3
    assert rig.output.interrupts == 1


def test_output_that_blocks_keeps_the_buffer_until_there_is_room(rig: Rig) -> None:
    rig.backend.room = 3
    rig.output.add([b"ab", b"cdef"])
    rig.output.add([b"gh"])
    rig.device.notify(TRANSMIT)
    assert rig.backend.shown == b"abc"
    assert rig.output.collect() == []
    rig.device.notify(TRANSMIT)  # the driver may notify again: nothing is sent twice or out of order
    assert rig.backend.shown == b"abc"
    rig.backend.make_room(2)
    assert rig.backend.shown == b"abcde"
    rig.backend.make_room(100)
    assert rig.backend.shown == b"abcdefgh"
    assert len(rig.output.collect()) == 2


def test_input_goes_into_the_buffers_of_the_guest(rig: Rig) -> None:
    rig.input.add(writable=[4])
    rig.input.add(writable=[4])
    rig.device.notify(RECEIVE)
    rig.backend.type(b"abcdef")
    assert [(used.written, used.data[: used.written]) for used in rig.input.collect()] == [
        (4, b"abcd"),
        (2, b"ef"),
    ]


def test_input_waits_in_the_backend_until_the_guest_has_room(rig: Rig) -> None:
    rig.backend.type(b"abc")
    assert rig.backend.typed == b"abc"
    assert rig.backend.reads == [], "not even a read without a place for what comes"
    rig.input.add(writable=[16])
    assert rig.input.wants_kick
    rig.device.notify(RECEIVE)
    (used,) = rig.input.collect()
    assert used.data[:3] == b"abc"


def test_input_typed_before_the_driver_came_is_delivered(ram: GuestRam, transport: FakeTransport) -> None:
    backend, loop = FakeChardev(), FakeLoop()
    device = VirtioConsole("virtio-console0", backend, loop)
    backend.type(b"early")
    driver = Driver(ram, 8)
    driver.add(writable=[16])
    device.activate(0, (driver.queue(), None), transport)
    loop.timers.pop().expire()
    assert driver.collect()[0].data[:5] == b"early"


def test_a_returned_buffer_needs_no_notification(rig: Rig) -> None:
    for _ in range(4):
        rig.input.add(writable=[4])
    rig.device.notify(RECEIVE)
    rig.backend.type(b"x")
    rig.input.collect()
    rig.input.add(writable=[4])
    assert not rig.input.wants_kick


def test_a_terminal_size_is_offered_and_follows_a_resize(ram: GuestRam, transport: FakeTransport) -> None:
    rig = Rig(ram, transport, size=(80, 25))
    assert rig.device.features == F_SIZE
    assert struct.unpack_from("<HH", rig.device.config) == (80, 25)
    assert transport.config_changes == 1  # a driver that starts is told to read it
    rig.backend.resize((132, 50))
    assert struct.unpack_from("<HHII", rig.device.config) == (132, 50, 1, 0)
    assert transport.config_changes == 2


def test_a_resize_before_the_driver_came_changes_what_it_will_read(ram: GuestRam) -> None:
    backend = FakeChardev((80, 25))
    device = VirtioConsole("virtio-console0", backend, FakeLoop())
    backend.resize((100, 30))
    assert struct.unpack_from("<HH", device.config) == (100, 30)


def test_no_size_is_offered_without_a_terminal(rig: Rig) -> None:
    assert rig.device.features == 0


def test_an_input_buffer_without_room_is_refused(rig: Rig) -> None:
    rig.input.add([b"x"])
    with pytest.raises(GuestError, match="without room"):
        rig.device.notify(RECEIVE)


def test_a_violation_found_on_input_stops_the_device(rig: Rig) -> None:
    rig.input.set_avail_idx(0x4000)
    rig.backend.type(b"x")
    assert len(rig.transport.stopped) == 1


def test_a_violation_found_when_output_resumes_stops_the_device(rig: Rig) -> None:
    rig.backend.room = 0
    rig.output.add([b"x"])
    rig.device.notify(TRANSMIT)
    rig.output.set_avail_idx(0x4000)
    rig.backend.make_room(10)
    assert len(rig.transport.stopped) == 1


def test_after_a_reset_in_the_midst_of_output_and_input_nothing_old_is_left(rig: Rig) -> None:
    rig.backend.room = 1
    rig.output.add([b"abc"])
    rig.device.notify(TRANSMIT)
    rig.input.add(writable=[4])
    rig.device.notify(RECEIVE)
    done: list[bool] = []
    rig.device.deactivate(lambda: done.append(True))
    assert done == [True]
    rig.backend.make_room(100)
    rig.backend.type(b"kept")
    assert rig.backend.shown == b"a"
    assert rig.input.collect() == rig.output.collect() == []
    rig.input = Driver(rig.input.memory, 8, base=0x10000, end=0x80000)
    rig.input.add(writable=[8])
    rig.input.memory.write(rig.output.avail, bytes(4))
    rig.activate()
    assert rig.input.collect()[0].data[:4] == b"kept"


def test_endless_input_takes_turns_with_the_rest_of_the_loop(rig: Rig) -> None:
    def endless(limit: int) -> bytes:
        rig.input.make_available(0)  # the guest refills as fast
        return b"y" * limit

    rig.backend.read = endless  # type: ignore[method-assign]
    rig.input.add(writable=[4])
    rig.device.notify(RECEIVE)
    assert len(rig.loop.soon) == 1


def test_closing_an_old_device_leaves_the_new_one_attached() -> None:
    backend = NullChardev()
    old = VirtioConsole("virtio-console0", backend, FakeLoop())
    new = VirtioConsole("virtio-console0", backend, FakeLoop())
    serving = backend.frontend
    old.close()
    assert backend.frontend is serving is not None
    new.close()
    assert backend.frontend is None


def test_input_waits_until_the_driver_has_set_its_port_up(ram: GuestRam, transport: FakeTransport) -> None:
    rig = Rig(ram, transport)
    rig.device.deactivate(lambda: None)
    rig.input.add(writable=[16])
    rig.backend.typed = b"early"
    queues = (rig.input.queue(), rig.output.queue())
    rig.device.activate(0, queues, transport)
    rig.device.notify(RECEIVE)
    rig.backend.type(b"")
    assert rig.backend.typed == b"early"
    rig.settle()
    assert rig.backend.typed == b""


def test_the_wait_of_an_earlier_activation_does_not_end_that_of_the_next(
    ram: GuestRam, transport: FakeTransport
) -> None:
    rig = Rig(ram, transport)
    queues = (rig.input.queue(), rig.output.queue())
    rig.device.deactivate(lambda: None)
    rig.device.activate(0, queues, transport)
    (first,) = rig.loop.timers
    rig.device.deactivate(lambda: None)
    rig.device.activate(0, queues, transport)
    rig.backend.typed = b"early"
    rig.input.add(writable=[16])
    first.expire()
    assert rig.backend.typed == b"early"
