"""Every device on rings that a hostile driver filled: it answers or stops, and nothing else happens."""

from __future__ import annotations

import gc
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import FakeTransport
from fakes.loop import FakeLoop
from nemu.backends.chardev import Chardev
from nemu.backends.disk import Disk
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.blk import VirtioBlk
from nemu.virtio.console import VirtioConsole
from nemu.virtio.device import VirtioDevice
from nemu.virtio.net import VirtioNet
from nemu.virtio.ports import NamedPort, VirtioPorts
from nemu.virtio.queue import Queue
from nemu.virtio.rng import VirtioRng

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


Make = Callable[[FakeLoop], VirtioDevice]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    path: Path = tmp_path_factory.mktemp("hostile") / "disk.img"
    path.write_bytes(bytes(64 * 512))
    opened = Disk(str(path))
    yield opened
    opened.close()


@pytest.fixture(params=["blk", "console", "net", "ports", "rng"])
def make(request: pytest.FixtureRequest, disk: Disk) -> Make:
    devices: dict[str, Make] = {
        "blk": lambda loop: VirtioBlk("blk", disk, loop.lock, loop),
        "console": lambda loop: VirtioConsole("console", Endless(), loop),
        "net": lambda loop: VirtioNet("net", EndlessPort(disk.fd), bytes(6), loop, print),
        "ports": lambda loop: VirtioPorts(
            "ports", [NamedPort("a", Endless()), NamedPort("b", Endless())], loop
        ),
        "rng": lambda loop: VirtioRng("rng", loop),
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
    device = make(loop)
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
    ram.close()
