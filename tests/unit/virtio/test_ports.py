"""Named ports: what driver and device tell each other, on backends that the test plays."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends.chardev import Chardev
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.ports import F_MULTIPORT, NamedPort, VirtioPorts

# virtio 1.2, 5.3.6.2
DEVICE_READY, DEVICE_ADD, PORT_READY, PORT_OPEN, PORT_NAME = 0, 1, 3, 6, 7
TELL, HEAR = 2, 3  # queues of control messages: to the driver, from it


class FakeChardev(Chardev):
    """``typed`` waits to be read, ``room`` bytes are taken, ``there`` tells whether anybody is connected."""

    def __init__(self, there: bool = True) -> None:
        super().__init__()
        self.there = there
        self.typed = b""
        self.shown = b""
        self.room = 1 << 20
        self.ends = 0

    @property
    def connected(self) -> bool:
        return self.there

    def read(self, limit: int) -> bytes:
        data, self.typed = self.typed[:limit], self.typed[limit:]
        return data

    def write(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        self.room -= taken
        self.shown += data[:taken]
        return taken

    def ended(self) -> None:
        self.ends += 1

    def type(self, data: bytes) -> None:
        self.typed += data
        self._readable()

    def make_room(self) -> None:
        self.room = 1 << 20
        self._writable()

    def connect(self, there: bool) -> None:
        self.there = there
        self._changed()


@dataclass
class Rig:
    """Two ports, "one" with somebody at its other end and "two" without, and a driver on each queue."""

    ram: GuestRam
    transport: FakeTransport
    one: FakeChardev = field(default_factory=FakeChardev)
    two: FakeChardev = field(default_factory=lambda: FakeChardev(there=False))

    def __post_init__(self) -> None:
        self.loop = FakeLoop()
        ports = [NamedPort("one", self.one), NamedPort("two", self.two)]
        self.device = VirtioPorts("virtio-ports0", ports, self.loop)
        self.drivers = [
            Driver(self.ram, 16, base=0x10000 * (number + 1), end=0x10000 * (number + 2), event_idx=True)
            for number in range(len(self.device.queue_sizes))
        ]
        self.activate(F_MULTIPORT)

    def activate(self, features: int) -> None:
        self.device.activate(features, tuple(driver.queue() for driver in self.drivers), self.transport)

    def say(self, number: int, event: int, value: int) -> None:
        self.drivers[HEAR].add([struct.pack("<IHH", number, event, value)])
        self.device.notify(HEAR)
        self.drivers[HEAR].collect()

    def give_buffers(self, count: int = 8) -> None:
        for _ in range(count):
            self.drivers[TELL].add(writable=[64])
        self.device.notify(TELL)

    def told(self) -> list[tuple[int, int, int, bytes]]:
        """(port, event, value, text) of each message since the last call."""
        found = []
        for used in self.drivers[TELL].collect():
            message = used.data[: used.written]
            found.append((*struct.unpack_from("<IHH", message), message[8:]))
        return found

    def start(self) -> None:
        """What a driver does until both ports are open."""
        self.give_buffers(8)
        self.say(0xFFFFFFFF, DEVICE_READY, 1)
        for number in range(2):
            self.say(number, PORT_READY, 1)
            self.say(number, PORT_OPEN, 1)
        self.told()
        self.give_buffers()


@pytest.fixture
def rig(ram: GuestRam, transport: FakeTransport) -> Rig:
    return Rig(ram, transport)


def test_the_device_has_a_pair_of_queues_for_each_port_and_one_for_messages(rig: Rig) -> None:
    assert len(rig.device.queue_sizes) == 6
    assert struct.unpack("<HHII", rig.device.config) == (0, 0, 2, 0)


def test_a_driver_learns_of_the_ports_their_names_and_whether_they_are_open(rig: Rig) -> None:
    rig.give_buffers()
    assert rig.told() == []
    rig.say(0xFFFFFFFF, DEVICE_READY, 1)
    assert rig.told() == [(0, DEVICE_ADD, 1, b""), (1, DEVICE_ADD, 1, b"")]
    rig.say(0, PORT_READY, 1)
    assert rig.told() == [(0, PORT_NAME, 1, b"one"), (0, PORT_OPEN, 1, b"")]
    rig.say(1, PORT_READY, 1)
    assert rig.told() == [(1, PORT_NAME, 1, b"two"), (1, PORT_OPEN, 0, b"")]


def test_a_driver_that_has_no_room_yet_is_told_later(rig: Rig) -> None:
    rig.say(0xFFFFFFFF, DEVICE_READY, 1)
    rig.drivers[TELL].add(writable=[64])
    assert rig.drivers[TELL].wants_kick
    rig.device.notify(TELL)
    assert rig.told() == [(0, DEVICE_ADD, 1, b"")]
    rig.give_buffers(1)
    assert rig.told() == [(1, DEVICE_ADD, 1, b"")]


def test_questions_without_room_for_the_answers_do_not_pile_up(rig: Rig) -> None:
    for _ in range(100):
        rig.say(0, DEVICE_READY, 1)
        rig.say(1, PORT_READY, 1)
        rig.two.connect(not rig.two.there)
    rig.give_buffers(16)
    told = rig.told()
    assert len(told) == len(set(told)) <= 5
    assert [value for number, event, value, _ in told if event == PORT_OPEN][-1] == rig.two.there


def test_a_port_that_the_driver_could_not_set_up_is_told_nothing_more(rig: Rig) -> None:
    rig.give_buffers()
    rig.say(0, PORT_READY, 0)
    rig.one.connect(False)
    assert rig.told() == []


def test_bytes_go_to_the_port_whose_queue_they_are_in(rig: Rig) -> None:
    rig.start()
    for queue, backend in ((1, rig.one), (5, rig.two)):
        rig.drivers[queue].add([b"from %d" % queue])
        rig.device.notify(queue)
        assert backend.shown == b"from %d" % queue
    for queue, backend in ((0, rig.one), (4, rig.two)):
        rig.drivers[queue].add(writable=[16])
        backend.type(b"to %d" % queue)
        assert rig.drivers[queue].collect()[0].data.startswith(b"to %d" % queue)


def test_input_waits_until_a_program_in_the_guest_has_opened_the_port(rig: Rig) -> None:
    rig.drivers[0].add(writable=[16])
    rig.device.notify(0)
    rig.one.type(b"early")
    assert rig.one.typed == b"early"
    rig.say(0, PORT_OPEN, 1)
    assert rig.drivers[0].collect()[0].data[:5] == b"early"
    rig.say(0, PORT_OPEN, 0)
    rig.drivers[0].add(writable=[16])
    rig.one.type(b"late")
    assert rig.one.typed == b"late"


def test_the_driver_is_told_when_the_other_end_leaves_and_comes(rig: Rig) -> None:
    rig.start()
    rig.one.connect(False)
    rig.two.connect(True)
    assert rig.told() == [(0, PORT_OPEN, 0, b""), (1, PORT_OPEN, 1, b"")]


def test_the_backend_learns_of_the_end_when_it_has_all_output(rig: Rig) -> None:
    rig.start()
    rig.one.room = 2
    rig.drivers[1].add([b"abc"])
    rig.drivers[1].add([b"def"])
    rig.device.notify(1)
    rig.say(0, PORT_OPEN, 0)
    assert (rig.one.shown, rig.one.ends) == (b"ab", 0)
    rig.one.make_room()
    assert (rig.one.shown, rig.one.ends) == (b"abcdef", 1)


def test_output_that_nobody_notified_of_comes_before_the_end(rig: Rig) -> None:
    rig.start()
    rig.drivers[1].add([b"last words"])
    rig.say(0, PORT_OPEN, 0)
    assert (rig.one.shown, rig.one.ends) == (b"last words", 1)


def test_a_port_that_is_opened_again_before_its_end_has_not_ended(rig: Rig) -> None:
    rig.start()
    rig.one.room = 0
    rig.drivers[1].add([b"abc"])
    rig.say(0, PORT_OPEN, 0)
    rig.say(0, PORT_OPEN, 1)
    rig.one.make_room()
    assert (rig.one.shown, rig.one.ends) == (b"abc", 0)


def test_a_driver_without_multiport_gets_nothing(rig: Rig) -> None:
    rig.device.deactivate(lambda: None)
    rig.activate(0)
    rig.drivers[1].add([b"x"])
    rig.device.notify(1)
    rig.give_buffers()
    rig.say(0, DEVICE_READY, 1)
    assert (rig.one.shown, rig.told()) == (b"", [])


def test_nothing_is_left_after_a_reset(rig: Rig) -> None:
    rig.say(0, DEVICE_READY, 1)
    rig.say(0, PORT_READY, 1)
    done: list[bool] = []
    rig.device.deactivate(lambda: done.append(True))
    assert done == [True]
    rig.one.connect(False)
    rig.one.type(b"kept")
    rig.activate(F_MULTIPORT)
    rig.give_buffers()
    assert rig.told() == []
    assert rig.one.typed == b"kept"


def test_closing_lets_go_of_the_backends(rig: Rig) -> None:
    rig.device.close()
    assert rig.one.frontend is None
    assert rig.two.frontend is None


@pytest.mark.parametrize("event", [PORT_READY, PORT_OPEN])
@pytest.mark.parametrize("number", [2, 0x80000000, 0xFFFFFFFF])
def test_a_message_for_a_port_that_is_not_there_is_refused(rig: Rig, number: int, event: int) -> None:
    with pytest.raises(GuestError, match=f"for port {number} of 2"):
        rig.say(number, event, 1)


def test_a_short_message_is_refused(rig: Rig) -> None:
    rig.drivers[HEAR].add([b"1234567"])
    with pytest.raises(GuestError, match="of 7 bytes"):
        rig.device.notify(HEAR)


def test_messages_of_later_standards_are_ignored(rig: Rig) -> None:
    rig.give_buffers()
    rig.say(0, 99, 1)
    assert rig.told() == []


def test_a_buffer_too_small_for_a_message_is_refused(rig: Rig) -> None:
    rig.drivers[TELL].add(writable=[7])
    with pytest.raises(GuestError, match="without room"):
        rig.say(0, DEVICE_READY, 1)


def test_a_violation_found_when_the_other_end_leaves_stops_the_device(rig: Rig) -> None:
    rig.start()
    rig.drivers[TELL].set_avail_idx(0x4000)
    rig.one.connect(False)
    assert len(rig.transport.stopped) == 1
