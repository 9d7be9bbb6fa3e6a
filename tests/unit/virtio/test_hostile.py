"""Every device on rings that a hostile driver filled: it answers or stops, and nothing else happens."""

from __future__ import annotations

import gc
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import FakeTransport
from fakes.loop import FakeLoop
from fakes.vhost import FakeTap, FakeVhost
from nemu.backends.chardev import Chardev
from nemu.backends.disk import Disk
from nemu.backends.tap import Tap
from nemu.backends.vsock_socket import VsockSocket
from nemu.balloon import Balloon
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.scsi.bus import Bus
from nemu.scsi.disk import ScsiDisk
from nemu.vhost.net import NetPlane, VhostNet
from nemu.virtio.balloon import VirtioBalloon
from nemu.virtio.blk import VirtioBlk
from nemu.virtio.console import VirtioConsole
from nemu.virtio.device import VirtioDevice
from nemu.virtio.net import VirtioNet
from nemu.virtio.pmem import VirtioPmem
from nemu.virtio.ports import NamedPort, VirtioPorts
from nemu.virtio.queue import Queue
from nemu.virtio.rng import VirtioRng
from nemu.virtio.scsi import VirtioScsi
from nemu.virtio.vsock import VirtioVsock

SIZE = 8
RAM = 0x20000


class Endless(Chardev):
    """Input without end, and output that is sometimes not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def read(self, limit: int) -> bytes:
        return b"A" * limit

    def write(self, data: memoryview) -> int:
        self.taken += len(data)
        return len(data) if self.taken % 7 else 0


class EndlessPort:
    """A network port that always has a packet of the largest size that fits."""

    name = "endless"
    features = 0

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def set_features(self, features: int) -> None:
        pass

    def receive(self, views: Sequence[memoryview]) -> int:
        return sum(map(len, views))

    def send(self, views: Sequence[memoryview]) -> bool:
        return True

    def close(self) -> None:
        pass


class AnyRam:
    """Memory of which everything may be thrown away; what really is, is tested with the balloon."""

    def discard(self, gpa: int, length: int) -> None:
        assert gpa % 4096 == length % 4096 == 0

    def gpa(self, view: memoryview) -> int:
        return 0x1234


Make = Callable[[FakeLoop, GuestRam], VirtioDevice]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    path: Path = tmp_path_factory.mktemp("hostile") / "disk.img"
    path.write_bytes(bytes(64 * 512))
    opened = Disk(str(path))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def planes() -> Iterator[list[NetPlane]]:
    """Data planes of the host kernel, which one driver after another has."""
    opened = [NetPlane(os.eventfd(0), cast(Tap, FakeTap()), FakeVhost()) for _ in range(2)]
    yield opened
    for plane in opened:
        plane.close()


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VsockSocket]:
    opened = VsockSocket(str(tmp_path_factory.mktemp("hostile") / "vsock"), FakeLoop())
    yield opened
    opened.close()


@pytest.fixture(
    params=["balloon", "blk", "console", "net", "pmem", "ports", "rng", "scsi", "vhost-net", "vsock"]
)
def make(request: pytest.FixtureRequest, disk: Disk, planes: list[NetPlane], sockets: VsockSocket) -> Make:
    bus = Bus()
    bus.add((0, 0), ScsiDisk(disk, "0:0"))
    devices: dict[str, Make] = {
        "balloon": lambda loop, ram: VirtioBalloon("balloon", Balloon(RAM, 0), AnyRam(), loop),
        "blk": lambda loop, ram: VirtioBlk("blk", disk, loop.lock, loop),
        "console": lambda loop, ram: VirtioConsole("console", Endless(), loop),
        "net": lambda loop, ram: VirtioNet("net", EndlessPort(disk.fd), bytes(6), loop, print),
        "pmem": lambda loop, ram: VirtioPmem("pmem", disk, 4 << 30, loop.lock, loop),
        "ports": lambda loop, ram: VirtioPorts(
            "ports", [NamedPort("a", Endless()), NamedPort("b", Endless())], loop
        ),
        "rng": lambda loop, ram: VirtioRng("rng", loop),
        "scsi": lambda loop, ram: VirtioScsi("scsi", bus, loop.lock, loop),
        "vhost-net": lambda loop, ram: VhostNet("vnet", planes, bytes(6), ram=ram, loop=loop, warn=print),
        "vsock": lambda loop, ram: VirtioVsock("vsock", 3, sockets, loop),
    }
    return devices[request.param]


class Hostile:
    """A driver with a seed: mostly right, so that chains reach the device, wrong in any field at times."""

    def __init__(self, seed: int, ram: GuestRam) -> None:
        self.random = random.Random(seed)
        self.ram = ram

    def wrong(self) -> bool:
        return self.random.random() < 0.03

    def fill(self, desc: int, avail: int) -> None:
        for index in range(SIZE):
            flags = self.random.choice([0, 2, 2, 3, 3, 1])
            gpa = 0x1000 if flags == 1 else self.random.randrange(0x1000, RAM - 0x1000)
            length = self.random.choice([1, 12, 16, 17, 512, 513, 0x800])
            if self.wrong():
                gpa = self.random.choice([0, desc, avail, RAM - 1, RAM, 2**63, 2**64 - 1])
            if self.wrong():
                length = self.random.choice([0, 2**31, 2**32 - 1])
            if self.wrong():
                flags = self.random.randrange(0x10000)
            following = self.random.randrange(SIZE + self.wrong())
            self.ram.write(desc + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))
        available = self.random.choice([1, 2, 3, SIZE] if not self.wrong() else [SIZE + 1, 0x8000, 0xFFFF])
        heads = [self.random.randrange(SIZE + self.wrong()) for _ in range(SIZE)]
        self.ram.write(avail, struct.pack(f"<HH{SIZE}H", 0, available, *heads))

    def anywhere(self) -> int:
        return 16 * self.random.randrange(RAM // 16 - 0x40)

    def rings(self, number: int) -> tuple[int, int, int]:
        if self.wrong():
            return self.anywhere(), self.anywhere(), self.anywhere()
        return 0x400 * number, 0x400 * number + 0x200, 0x400 * number + 0x300


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64 - 1))
def test_it_answers_or_stops(make: Make, seed: int) -> None:
    ram, loop, transport = GuestRam([(0, RAM)]), FakeLoop(), FakeTransport()
    hostile = Hostile(seed, ram)
    sector = hostile.random.choice([0, 1, 63, 2**63])
    event = hostile.random.randrange(8) | hostile.random.choice([0, 1, 1, 2]) << 16  # for ports
    ram.write(0x1000, struct.pack("<IIQ", hostile.random.randrange(15), event, sector))  # for blk
    device = make(loop, ram)
    queues: list[Queue] = []
    for number in range(len(device.queue_sizes)):
        desc, avail, used = hostile.rings(number)
        hostile.fill(desc, avail)
        queues.append(
            Queue(
                ram,
                size=SIZE,
                desc=desc,
                avail=avail,
                used=used,
                event_idx=hostile.random.random() < 0.5,
                interrupt=lambda: None,
            )
        )
    gc.collect()  # else what an earlier test left behind goes while this one counts
    descriptors_before = len(os.listdir("/proc/self/fd"))
    done: list[bool] = []
    with loop.lock:
        try:
            device.activate(hostile.random.getrandbits(32), tuple(queues), transport)
            for _ in range(3):
                for index in range(len(queues)):
                    device.notify(index)
        except GuestError:
            pass
        loop.readers.clear()
        loop.writers.clear()
    for _ in range(3):
        loop.turn()  # whatever it left to do later, guarded
    with loop.lock:
        device.deactivate(lambda: done.append(True))
    deadline = time.monotonic() + 5
    while not done:
        assert time.monotonic() < deadline
        loop.turn(0.001)
    assert all(queue.in_flight <= SIZE for queue in queues)
    assert len(os.listdir("/proc/self/fd")) == descriptors_before
    device.close()
    ram.close()
