"""The network device on a port that the test plays, and on a real tap where one can be made."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends.netdev import HEADER_SIZE, MAX_PACKET
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.device import BATCH
from nemu.virtio.net import F_MRG_RXBUF, RECEIVE, TRANSMIT, VirtioNet, stable_mac

MAC = bytes.fromhex("026e00000001")
HEADER = struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0xABCD)  # as a host gives it, num_buffers unset


class FakePort:
    """A NetBackend: ``arriving`` packets (with header), ``sent`` ones; ``room`` is how many it takes."""

    name = "fake0"
    features = 1

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self.arriving: list[bytes] = []
        self.sent: list[bytes] = []
        self.room = 1 << 30
        self.negotiated: list[int] = []
        self.error: OSError | None = None
        self.offered: list[int] = []  # bytes of room in each receive call

    def fileno(self) -> int:
        return self._event

    def set_features(self, features: int) -> None:
        self.negotiated.append(features)

    def arrive(self, *packets: bytes) -> None:
        self.arriving += packets
        os.eventfd_write(self._event, 1)

    def receive(self, views: Sequence[memoryview]) -> int:
        if self.error:
            raise self.error
        self.offered.append(sum(map(len, views)))
        if not self.arriving:
            if self._event_set():
                os.eventfd_read(self._event)
            return 0
        packet = self.arriving.pop(0)
        rest = packet
        for view in views:
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        return len(packet) - len(rest)

    def send(self, views: Sequence[memoryview]) -> bool:
        if self.error:
            raise self.error
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(b"".join(views))
        return True

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def _event_set(self) -> bool:
        try:
            os.eventfd_write(self._event, os.eventfd_read(self._event))
        except BlockingIOError:
            return False
        return True


class Rig:
    """An active interface with mergeable receive buffers, unless ``features`` says otherwise."""

    def __init__(
        self, ram: GuestRam, transport: FakeTransport, features: int = F_MRG_RXBUF, size: int = 64
    ) -> None:
        self.port = FakePort()
        self.loop = FakeLoop()
        self.warnings: list[str] = []
        self.device = VirtioNet("virtio-net0", self.port, MAC, self.loop, self.warnings.append)
        self.input = Driver(ram, size, base=0x10000, end=0x180000, event_idx=True)
        self.output = Driver(ram, 64, base=0x180000, end=0x300000, event_idx=True)
        self.transport = transport
        self.device.activate(features, (self.input.queue(), self.output.queue()), transport)

    def give_room(self, count: int, size: int) -> None:
        for _ in range(count):
            self.input.add(writable=[size])
        self.device.notify(RECEIVE)

    def received(self) -> list[bytes]:
        """Packets that the driver puts together from used buffers (5.1.6.3.2), without their headers."""
        packets = []
        buffers = self.input.collect()
        while buffers:
            (count,) = struct.unpack_from("<H", buffers[0].data, 10)
            packet = b"".join(used.data[: used.written] for used in buffers[:count])
            packets.append(packet[HEADER_SIZE:])
            del buffers[:count]
        return packets


@pytest.fixture
def rig(ram: GuestRam, transport: FakeTransport) -> Iterator[Rig]:
    made = Rig(ram, transport)
    yield made
    made.port.close()


def test_a_packet_is_sent_with_its_header(rig: Rig) -> None:
    rig.output.add([HEADER, b"frame one"])
    rig.output.add([HEADER + b"frame two"])
    rig.device.notify(TRANSMIT)
    assert rig.port.sent == [HEADER + b"frame one", HEADER + b"frame two"]
    assert len(rig.output.collect()) == 2
    assert rig.output.interrupts == 1


def test_a_packet_is_received_into_one_buffer(rig: Rig) -> None:
    rig.give_room(44, 1536)
    rig.port.arrive(HEADER + b"a" * 60, HEADER + b"b" * 61)
    rig.loop.settle()
    assert rig.received() == [b"a" * 60, b"b" * 61]
    assert rig.input.interrupts == 1


def test_a_large_packet_takes_several_buffers_that_appear_together(rig: Rig) -> None:
    rig.give_room(44, 1536)
    packet = os.urandom(10_000)
    rig.port.arrive(HEADER + packet)
    rig.loop.settle()
    (used, *_) = rig.input.collect()
    assert used.data[:10] == HEADER[:10]
    assert struct.unpack_from("<H", used.data, 10) == (7,)


def test_packets_survive_merging(rig: Rig) -> None:
    packets = [os.urandom(size) for size in (60, 1524, 1525, 9000, 1)]
    rig.give_room(60, 1536)
    rig.port.arrive(*(HEADER + packet for packet in packets))
    rig.loop.settle()
    assert rig.received() == packets


def test_without_mergeable_buffers_each_packet_has_one(ram: GuestRam, transport: FakeTransport) -> None:
    rig = Rig(ram, transport, features=0)
    rig.give_room(3, 2000)
    rig.port.arrive(HEADER + b"x" * 100, HEADER + b"y" * 100)
    rig.loop.settle()
    assert rig.received() == [b"x" * 100, b"y" * 100]
    assert set(rig.port.offered) == {2000}
    rig.port.close()


def test_the_port_is_read_only_with_room_for_any_packet(rig: Rig) -> None:
    rig.port.arrive(HEADER + b"early")
    rig.loop.settle()
    assert rig.port.offered == []
    assert rig.loop.readers == {}, "a port that nobody reads must not wake the loop"
    rig.give_room(20, 1536)
    assert rig.port.offered == []
    rig.give_room(23, 1536)
    assert rig.received() == [b"early"]
    assert min(rig.port.offered) >= MAX_PACKET
    rig.input.add(writable=[1536])
    assert rig.input.wants_kick, "it has too little room again and must hear of more"


def test_a_small_queue_that_is_full_has_to_do(ram: GuestRam, transport: FakeTransport) -> None:
    rig = Rig(ram, transport, size=4)
    rig.give_room(4, 1536)
    rig.port.arrive(HEADER + b"x" * 3000)
    rig.loop.settle()
    assert rig.received() == [b"x" * 3000]
    rig.port.close()


def test_a_full_port_holds_the_packet_and_those_behind_it(rig: Rig) -> None:
    rig.port.room = 1
    for name in (b"1", b"2", b"3"):
        rig.output.add([HEADER + name])
    rig.device.notify(TRANSMIT)
    assert len(rig.output.collect()) == 1
    assert list(rig.loop.writers) == [rig.port.fileno()]
    rig.port.room = 10
    rig.loop.settle()
    assert [packet[HEADER_SIZE:] for packet in rig.port.sent] == [b"1", b"2", b"3"]
    assert rig.loop.writers == {}
    assert len(rig.output.collect()) == 2


def test_a_flood_from_the_host_takes_turns_with_the_rest(rig: Rig) -> None:
    real = rig.port.receive

    def endless(views: Sequence[memoryview]) -> int:
        rig.port.arriving = [HEADER + b"flood"]
        length = real(views)
        rig.input.make_available(0)  # and the guest refills as fast
        return length

    rig.give_room(60, 1536)
    rig.port.receive = endless  # type: ignore[method-assign]
    rig.port.arrive(HEADER)
    rig.loop.turn()
    assert len(rig.port.offered) <= BATCH + 1
    assert len(rig.loop.soon) == 1


def test_an_oversized_packet_of_the_guest_is_dropped(rig: Rig) -> None:
    rig.output.add([HEADER, b"x" * (MAX_PACKET - HEADER_SIZE)])
    rig.output.add([HEADER, b"x" * (MAX_PACKET - HEADER_SIZE + 1)])
    rig.device.notify(TRANSMIT)
    assert [len(packet) for packet in rig.port.sent] == [MAX_PACKET]
    assert len(rig.output.collect()) == 2


def test_a_packet_without_a_header_stops_the_device(rig: Rig) -> None:
    rig.output.add([b"x" * 11])
    with pytest.raises(GuestError, match="no header"):
        rig.device.notify(TRANSMIT)


def test_a_receive_buffer_without_room_for_the_header_stops_the_device(rig: Rig) -> None:
    rig.input.add(writable=[11])
    with pytest.raises(GuestError, match="no room for the header"):
        rig.device.notify(RECEIVE)


def test_a_violation_found_when_a_packet_arrives_stops_the_device(rig: Rig) -> None:
    rig.give_room(44, 1536)
    rig.port.arrive(HEADER + b"first", HEADER + b"x" * 2000)
    rig.input.set_avail_idx(0x4000)
    rig.loop.turn()
    assert len(rig.transport.stopped) == 1


@pytest.mark.parametrize("direction", [RECEIVE, TRANSMIT])
def test_a_lost_port_takes_the_link_down_and_the_guest_runs_on(rig: Rig, direction: int) -> None:
    rig.give_room(44, 1536)
    rig.port.error = ConnectionError("passt has ended")
    if direction == RECEIVE:
        rig.port.arrive(HEADER)
        rig.loop.turn()
    for _ in range(3):
        rig.output.add([HEADER + b"x"])
        rig.device.notify(TRANSMIT)
    assert rig.warnings == ["virtio-net0: fake0: passt has ended; its link is down"]
    assert struct.unpack_from("<H", rig.device.config, 6) == (0,)
    assert rig.transport.config_changes == 1
    assert len(rig.output.collect()) == 3, "the driver gets its buffers back"
    assert rig.loop.readers == rig.loop.writers == {}


def test_the_port_learns_the_features_that_were_negotiated(rig: Rig) -> None:
    assert rig.port.negotiated == [F_MRG_RXBUF]
    assert rig.device.features & 1, "what the port offers is offered"


def test_the_configuration_space_has_the_address_and_the_link(rig: Rig) -> None:
    assert bytes(rig.device.config[:8]) == MAC + b"\x01\x00"


def test_a_reset_leaves_no_buffer_and_no_descriptor_watched(rig: Rig, ram: GuestRam) -> None:
    rig.give_room(44, 1536)
    rig.port.room = 0
    rig.output.add([HEADER + b"x"])
    rig.device.notify(TRANSMIT)
    done: list[bool] = []
    rig.device.deactivate(lambda: done.append(True))
    assert done == [True]
    assert rig.loop.readers == rig.loop.writers == {}
    rig.port.room = 9
    rig.device.notify(RECEIVE)
    rig.device.notify(TRANSMIT)
    assert rig.port.sent == []
    assert rig.input.collect() == rig.output.collect() == []


def test_the_default_address_is_stable_local_and_different_for_each_port() -> None:
    assert stable_mac("tap0") == stable_mac("tap0") != stable_mac("tap1")
    assert stable_mac("tap0")[0] & 3 == 2
    assert len(stable_mac("")) == 6


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rooms=st.lists(st.lists(st.integers(12, 3000), min_size=1, max_size=3), max_size=20),
    packets=st.lists(st.binary(max_size=5000), max_size=6),
    mergeable=st.booleans(),
)
def test_any_buffers_take_any_packets_whole_or_cut_at_the_end_of_their_room(
    ram: GuestRam, *, rooms: list[list[int]], packets: list[bytes], mergeable: bool
) -> None:
    ram.write(0x10000, bytes(0x2000))
    ram.write(0x180000, bytes(0x2000))
    rig = Rig(ram, FakeTransport(), features=F_MRG_RXBUF if mergeable else 0)
    for sizes in rooms:
        rig.input.add(writable=sizes)
    rig.port.arrive(*(HEADER + packet for packet in packets))
    rig.device.notify(RECEIVE)
    rig.loop.settle()
    taken = packets[: len(packets) - len(rig.port.arriving)]
    received = rig.received()
    assert len(received) == len(taken)
    assert all(whole.startswith(part) for part, whole in zip(received, taken, strict=True))
    if mergeable:
        assert received == taken
    rig.port.close()
