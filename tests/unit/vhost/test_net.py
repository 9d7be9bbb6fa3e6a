"""virtio-net by the host kernel: queue pairs, the control queue, offloads and the link."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import cast

import pytest

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from fakes.vhost import MRG_RXBUF, NO_HEADER, VERSION_1, FakeTap, FakeVhost
from nemu.backends.tap import Tap
from nemu.errors import HostError
from nemu.memory import GuestRam
from nemu.vhost import net as vhost_net
from nemu.vhost.net import NetPlane, VhostNet, open_planes
from nemu.virtio.queue import Queue

MAC = bytes.fromhex("026e00000001")
CTRL_VQ, MQ = 1 << 17, 1 << 22
OK, ERR = b"\x00", b"\x01"


class Rig:
    """An interface of ``pairs`` queue pairs; ``start`` is its driver."""

    def __init__(self, ram: GuestRam, loop: FakeLoop, pairs: int = 2, *, header: bool = True) -> None:
        self.ram, self.loop, self.transport = ram, loop, FakeTransport()
        self.kernels = [FakeVhost() for _ in range(pairs)]
        self.taps = [FakeTap(70 + number, header=header) for number in range(pairs)]
        self.planes = [
            NetPlane(os.eventfd(0), cast(Tap, tap), kernel)
            for tap, kernel in zip(self.taps, self.kernels, strict=True)
        ]
        self.warnings: list[str] = []
        self.device = VhostNet("virtio-net0", self.planes, MAC, ram=ram, loop=loop, warn=self.warnings.append)
        self.control: Driver | None = None

    def start(self, features: int = VERSION_1 | CTRL_VQ | MQ, control: int | None = None) -> None:
        count = len(self.device.queue_sizes)
        drivers = [
            Driver(self.ram, 16, base=0x10000 * (number + 1), end=0x10000 * (number + 2))
            for number in range(count)
        ]
        queues: list[Queue | None] = [driver.queue() for driver in drivers]
        for number, queue in enumerate(queues):
            assert queue
            queue.kick, queue.call = 100 + number, 200 + number
        self.control = drivers[control if control is not None else count - 1]
        self.device.activate(features, tuple(queues), self.transport)

    def command(self, content: bytes, *, writable: tuple[int, ...] = (1,)) -> bytes:
        """Give the control queue a command; the answer."""
        assert self.control
        self.control.add([content] if content else [], list(writable))
        for index in range(len(self.device.queue_sizes)):
            if self.device.serves(index):
                self.device.notify(index)
        self.loop.settle()
        (used,) = self.control.collect()
        return used.data

    def running(self) -> list[bool]:
        return [kernel.serves(0) and kernel.serves(1) for kernel in self.kernels]

    def close(self) -> None:
        self.device.deactivate(lambda: None)
        self.device.close()
        assert all(kernel.idle for kernel in self.kernels)
        for plane in self.planes:
            plane.close()


@pytest.fixture
def rig(ram: GuestRam, loop: FakeLoop) -> Iterator[Rig]:
    made = Rig(ram, loop)
    yield made
    made.close()


def pairs_set(count: int) -> bytes:
    return struct.pack("<BBH", 4, 0, count)


def test_several_pairs_are_offered_with_a_control_queue(rig: Rig) -> None:
    assert len(rig.device.queue_sizes) == 5
    assert rig.device.features & (CTRL_VQ | MQ) == CTRL_VQ | MQ
    assert bytes(rig.device.config) == MAC + struct.pack("<HHH", 1, 2, 0)


def test_one_pair_needs_no_control_queue(ram: GuestRam, loop: FakeLoop) -> None:
    rig = Rig(ram, loop, pairs=1)
    assert len(rig.device.queue_sizes) == 2
    assert not rig.device.features & (CTRL_VQ | MQ)
    rig.start(VERSION_1)
    assert rig.running() == [True]
    assert not any(map(rig.device.serves, range(2)))
    rig.close()


def test_a_driver_begins_with_the_first_pair(rig: Rig) -> None:
    rig.start()
    assert rig.running() == [True, False]
    assert [tap.attached for tap in rig.taps] == [True, False]
    assert [ring.backend for ring in rig.kernels[0].rings] == [70, 70]
    assert [ring.kick for ring in rig.kernels[0].rings] == [100, 101]
    assert [rig.device.serves(index) for index in range(5)] == [False] * 4 + [True]


def test_a_driver_takes_more_pairs_and_gives_them_back(rig: Rig) -> None:
    rig.start()
    for count, running in ((2, [True, True]), (2, [True, True]), (1, [True, False]), (2, [True, True])):
        assert rig.command(pairs_set(count)) == OK
        assert rig.running() == running
        assert [tap.attached for tap in rig.taps] == running
    assert [ring.kick for ring in rig.kernels[1].rings] == [102, 103]
    assert [ring.call for ring in rig.kernels[1].rings] == [202, 203]


@pytest.mark.parametrize(
    "content",
    [
        pairs_set(0),
        pairs_set(3),
        pairs_set(0x8000),
        b"\x04\x00",
        b"\x04\x00\x01",
        b"\x04\x00\x01\x00\x00",
        b"\x04\x00" + bytes(5000),
        b"\x04\x01\x01\x00",
        b"\x00\x00\x01",
        b"\xff\xff",
    ],
)
def test_a_command_that_is_wrong_or_unknown_is_refused(rig: Rig, content: bytes) -> None:
    rig.start()
    assert rig.command(content) == ERR
    assert rig.running() == [True, False]
    assert rig.transport.stopped == []


def test_an_answer_has_one_byte_in_room_for_more(rig: Rig) -> None:
    rig.start()
    assert rig.command(pairs_set(2), writable=(3, 4)) == OK + b"\xee" * 6


@pytest.mark.parametrize(("content", "writable"), [(b"", (1,)), (b"\x04", (1,)), (pairs_set(2), ())])
def test_a_command_without_head_or_room_for_the_answer_stops_the_device(
    rig: Rig, content: bytes, writable: tuple[int, ...]
) -> None:
    rig.start()
    assert rig.control
    rig.control.add([content] if content else [], list(writable))
    with pytest.raises(Exception, match="without its class") as caught:
        rig.device.notify(4)
    assert type(caught.value).__name__ == "GuestError"


def test_each_command_has_a_turn_of_the_loop_to_itself(rig: Rig) -> None:
    rig.start()
    assert rig.control
    for number in range(8):
        rig.control.add([pairs_set(1 + number % 2)], [1])
    rig.device.notify(4)
    for _ in range(7):
        assert len(rig.control.collect()) == 1
        rig.loop.turn()
    assert len(rig.control.collect()) == 1
    rig.loop.settle()
    assert rig.control.wants_kick


def test_a_reset_ends_a_row_of_commands(rig: Rig) -> None:
    rig.start()
    assert rig.control
    for _ in range(3):
        rig.control.add([pairs_set(2)], [1])
    rig.device.notify(4)
    rig.device.deactivate(lambda: None)
    rig.loop.settle()
    rig.device.notify(4)
    assert len(rig.control.collect()) == 1
    assert rig.running() == [False, False]


def test_without_multiqueue_the_control_queue_is_the_third(rig: Rig) -> None:
    rig.start(VERSION_1 | CTRL_VQ, control=2)
    assert rig.running() == [True, False]
    assert [rig.device.serves(index) for index in range(5)] == [False, False, True, False, False]
    assert rig.kernels[1].rings[0].desc == 0, "the kernel does not get the control queue as a ring"
    assert rig.command(pairs_set(2)) == ERR
    assert rig.running() == [True, False]


def test_a_driver_without_a_control_queue_has_the_first_pair(rig: Rig) -> None:
    rig.start(VERSION_1)
    assert rig.running() == [True, False]
    assert not any(map(rig.device.serves, range(5)))


def test_a_driver_may_only_send(ram: GuestRam, loop: FakeLoop) -> None:
    rig = Rig(ram, loop, pairs=1)
    transmit = Driver(ram, 16).queue()
    rig.device.activate(VERSION_1, (None, transmit), rig.transport)
    assert rig.transport.stopped == []
    assert [ring.backend for ring in rig.kernels[0].rings] == [-1, 70]
    rig.close()


def test_a_pair_that_the_kernel_refuses_stops_the_device(rig: Rig) -> None:
    rig.start()
    rig.kernels[1].fail["VHOST_NET_SET_BACKEND"] = errno.ENOBUFS
    assert rig.control
    rig.control.add([pairs_set(2)], [1])
    rig.device.notify(4)
    assert [str(error) for error in rig.transport.stopped] == [
        "VHOST_NET_SET_BACKEND: No buffer space available"
    ]
    assert rig.control.collect() == []
    rig.kernels[1].fail.clear()


def test_offloads_are_the_taps_and_merging_the_kernels(ram: GuestRam, loop: FakeLoop) -> None:
    rig = Rig(ram, loop, pairs=1)
    assert rig.device.features & (1 | MRG_RXBUF) == 1 | MRG_RXBUF
    rig.start(VERSION_1 | MRG_RXBUF | 1)
    assert rig.taps[0].negotiated == [VERSION_1 | MRG_RXBUF | 1]
    assert rig.kernels[0].acked == VERSION_1 | MRG_RXBUF
    rig.close()


def test_a_tap_without_headers_gets_them_from_the_kernel(ram: GuestRam, loop: FakeLoop) -> None:
    rig = Rig(ram, loop, pairs=1, header=False)
    rig.start(VERSION_1)
    assert rig.kernels[0].acked == VERSION_1 | NO_HEADER
    rig.close()


def test_a_driver_on_a_tap_that_is_gone_sees_its_link_down(rig: Rig) -> None:
    rig.taps[0].error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.start()
    assert rig.running() == [False, False]
    assert rig.device.config[6] == 0
    assert rig.warnings == ["virtio-net0: tap0: File descriptor in bad state; its link is down"]
    assert rig.command(pairs_set(2)) == OK
    assert rig.running() == [False, False]
    assert rig.transport.stopped == []


def test_a_tap_that_is_deleted_takes_the_link_down_once(rig: Rig) -> None:
    rig.start()
    (watched,) = (fd for fd in rig.loop.readers if fd not in {plane.errors for plane in rig.planes})
    rig.loop.readers[watched]()
    assert rig.device.config[6] == 1, "another interface was deleted"
    for tap in rig.taps:
        tap.error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.loop.readers[watched]()
    rig.loop.readers[watched]()
    assert rig.device.config[6] == 0
    assert len(rig.warnings) == 1
    assert rig.running() == [False, False]
    assert rig.transport.config_changes == 1


def test_a_descriptor_of_another_kind_is_refused_and_closed() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="VHOST_NET_SET_BACKEND: Inappropriate ioctl"):
        NetPlane(os.eventfd(0), cast(Tap, FakeTap()), FakeVhost("vsock"))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_all_descriptors_or_none_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_net, "DEVICE", "/dev/nemu-none")
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="/dev/nemu-none: No such file"):
        open_planes([cast(Tap, FakeTap())], ())
    assert len(os.listdir("/proc/self/fd")) == descriptors
