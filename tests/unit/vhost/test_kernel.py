"""What the host kernel is told of a driver's rings, and what is left of it afterwards."""

from __future__ import annotations

import errno
import gc
import mmap
import os
from collections.abc import Iterator

import pytest

from fakes.driver import RAM_SIZE, Driver, FakeTransport
from fakes.loop import FakeLoop
from fakes.vhost import EVENT_IDX, INDIRECT, VERSION_1, FakeVhost
from nemu.errors import GuestError, HostError
from nemu.memory import GuestRam
from nemu.vhost.kernel import open_device
from nemu.vhost.vsock import VhostVsock, VsockPlane
from nemu.virtio.queue import Queue


class Rig:
    """A socket device, which is the least that a data plane needs, and its driver."""

    def __init__(self, ram: GuestRam, loop: FakeLoop, transport: FakeTransport) -> None:
        self.ram = ram
        self.loop = loop
        self.transport = transport
        self.kernel = FakeVhost("vsock")
        self.plane = VsockPlane(os.eventfd(0), 42, self.kernel)
        self.device = VhostVsock("virtio-vsock0", self.plane, ram, loop)
        self.drivers = [Driver(ram, 16 << number, base=0x10000 + 0x20000 * number) for number in range(3)]

    def queues(self) -> tuple[Queue, ...]:
        queues = tuple(driver.queue() for driver in self.drivers)
        for number, queue in enumerate(queues):
            queue.kick, queue.call = 100 + number, 200 + number
        return queues

    def start(self, features: int = VERSION_1 | EVENT_IDX) -> None:
        self.device.activate(features, self.queues(), self.transport)

    def stop(self) -> None:
        done: list[bool] = []
        self.device.deactivate(lambda: done.append(True))
        assert done == [True]


@pytest.fixture
def rig(ram: GuestRam, loop: FakeLoop, transport: FakeTransport) -> Iterator[Rig]:
    made = Rig(ram, loop, transport)
    yield made
    made.plane.close()


def test_the_kernel_learns_where_rings_and_memory_are(rig: Rig, ram: GuestRam) -> None:
    rig.start()
    region = ram.regions[0]
    assert rig.kernel.memory == [(0, RAM_SIZE, region.host_address)]
    assert rig.kernel.acked == VERSION_1 | EVENT_IDX
    for number, (ring, driver) in enumerate(zip(rig.kernel.rings, rig.drivers, strict=False)):
        assert (ring.num, ring.base) == (driver.size, 0)
        assert ring.desc == region.host_address + driver.desc
        assert ring.avail == region.host_address + driver.avail
        assert ring.used == region.host_address + driver.used
        assert (ring.kick, ring.call) == (100 + number, 200 + number)
        assert rig.kernel.serves(number)
    assert rig.transport.stopped == []


def test_no_queue_is_heard_here(rig: Rig) -> None:
    rig.start()
    assert not any(rig.device.serves(index) for index in range(3))
    rig.device.notify(0)


def test_only_what_the_kernel_can_do_is_offered(ram: GuestRam, loop: FakeLoop) -> None:
    kernel = FakeVhost("vsock", features=VERSION_1 | INDIRECT)
    plane = VsockPlane(os.eventfd(0), 42, kernel)
    device = VhostVsock("virtio-vsock0", plane, ram, loop)
    assert device.ring_features == INDIRECT
    assert device.features == 0
    plane.close()


def test_after_a_reset_the_kernel_has_nothing_of_the_driver(rig: Rig) -> None:
    rig.start()
    rig.stop()
    assert rig.kernel.idle
    assert rig.loop.readers == {}
    rig.stop()


def test_the_next_machine_uses_the_same_descriptor(rig: Rig, loop: FakeLoop) -> None:
    rig.start()
    rig.stop()
    with_other = GuestRam([(0, RAM_SIZE), (1 << 32, RAM_SIZE)])
    again = Rig.__new__(Rig)
    again.__dict__.update(rig.__dict__, ram=with_other)
    again.device = VhostVsock("virtio-vsock0", rig.plane, with_other, loop)
    again.drivers = [Driver(with_other, 16, base=0x10000 + 0x20000 * number) for number in range(3)]
    again.start()
    assert rig.kernel.calls["VHOST_SET_OWNER"] == 1
    assert [gpa for gpa, _, _ in rig.kernel.memory or []] == [0, 1 << 32]
    assert rig.kernel.serves(0)
    again.stop()
    with_other.close()


def test_memory_that_is_added_is_told_at_once(rig: Rig, ram: GuestRam) -> None:
    rig.start()
    fd = os.memfd_create("more")
    os.ftruncate(fd, 1 << 20)
    ram.add(1 << 33, mmap.mmap(fd, 1 << 20), fd)
    os.close(fd)
    assert [(gpa, size) for gpa, size, _ in rig.kernel.memory or []] == [(0, RAM_SIZE), (1 << 33, 1 << 20)]
    rig.stop()
    assert rig.kernel.memory == []


def test_memory_that_is_added_without_a_driver_is_told_to_the_next(rig: Rig, ram: GuestRam) -> None:
    ram.add(1 << 33, mmap.mmap(-1, 1 << 20), -1)
    assert rig.kernel.memory == []
    rig.start()
    assert len(rig.kernel.memory or []) == 2


def test_memory_that_the_kernel_does_not_take_stops_the_device(rig: Rig, ram: GuestRam) -> None:
    rig.start()
    rig.kernel.fail["VHOST_SET_MEM_TABLE"] = errno.E2BIG
    ram.add(1 << 33, mmap.mmap(-1, 1 << 20), -1)
    assert [str(error) for error in rig.transport.stopped] == ["VHOST_SET_MEM_TABLE: Argument list too long"]


def test_a_ring_that_the_kernel_finds_bad_stops_the_device(rig: Rig) -> None:
    rig.start()
    os.eventfd_write(rig.kernel.rings[1].err, 1)
    rig.loop.turn()
    assert [type(error) for error in rig.transport.stopped] == [GuestError]
    rig.stop()
    rig.start()
    rig.loop.turn()
    assert len(rig.transport.stopped) == 1, "the next driver is not blamed for it"


@pytest.mark.parametrize(
    "name",
    [
        "VHOST_SET_FEATURES",
        "VHOST_SET_MEM_TABLE",
        "VHOST_SET_VRING_NUM",
        "VHOST_SET_VRING_BASE",
        "VHOST_SET_VRING_ADDR",
        "VHOST_SET_VRING_CALL",
        "VHOST_SET_VRING_ERR",
        "VHOST_SET_VRING_KICK",
        "VHOST_VSOCK_SET_RUNNING",
    ],
)
def test_a_kernel_that_refuses_stops_the_device_with_nothing_left(rig: Rig, name: str) -> None:
    rig.kernel.fail[name] = errno.ENOMEM
    rig.start()
    assert [str(error) for error in rig.transport.stopped] == [f"{name}: Cannot allocate memory"]
    rig.kernel.fail.clear()
    rig.stop()
    assert rig.kernel.idle


def test_a_kernel_that_does_not_let_go_loses_the_descriptor(rig: Rig) -> None:
    rig.start()
    rig.kernel.fail["VHOST_VSOCK_SET_RUNNING"] = errno.EFAULT
    rig.stop()
    assert rig.plane.fd == -1, "closing it ends all access to memory that will be somebody else's"
    rig.start()
    assert len(rig.transport.stopped) == 1


def test_a_queue_that_is_not_enabled_stops_a_device_that_needs_both(rig: Rig) -> None:
    receive, transmit, events = rig.queues()
    for queues in ((None, transmit, events), (receive, None, None)):
        with pytest.raises(GuestError, match="not both enabled"):
            rig.device.activate(VERSION_1, queues, rig.transport)
        rig.stop()
        assert rig.kernel.idle


@pytest.mark.parametrize("name", ["VHOST_SET_OWNER", "VHOST_GET_FEATURES", "VHOST_SET_MEM_TABLE"])
def test_a_descriptor_that_cannot_be_used_is_closed(name: str) -> None:
    gc.collect()  # what earlier tests left in cycles is closed now, not while this one counts
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=f"^{name}: Device or resource busy"):
        VsockPlane(os.eventfd(0), 3, FakeVhost("vsock", fail={name: errno.EBUSY}))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_missing_device_says_which_module() -> None:
    with pytest.raises(HostError, match=r"^/dev/nemu-none: No such file.*; try: modprobe vhost_x$"):
        open_device("/dev/nemu-none", "vhost_x")
