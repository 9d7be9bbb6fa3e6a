"""The entropy device."""

from __future__ import annotations

import os

import pytest

from fakes.driver import Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.virtio.device import BATCH
from nemu.virtio.rng import MAX_REQUEST, VirtioRng


@pytest.fixture
def rng(loop: FakeLoop) -> VirtioRng:
    return VirtioRng("virtio-rng0", loop)


def test_a_request_is_filled_with_entropy(rng: VirtioRng, ram: GuestRam, transport: FakeTransport) -> None:
    driver = Driver(ram, 8)
    rng.activate(0, (driver.queue(),), transport)
    driver.add(writable=[32, 32])
    driver.add(writable=[64])
    rng.notify(0)
    first, second = driver.collect()
    assert first.written == second.written == 64
    assert first.data != second.data
    assert len(set(first.data)) > 16  # 64 equal-looking bytes would not be random
    assert driver.interrupts == 1


def test_a_huge_request_gets_a_bounded_answer(
    rng: VirtioRng, ram: GuestRam, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def getrandom(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(os, "getrandom", getrandom)
    driver = Driver(ram, 8, end=0x300000)
    rng.activate(0, (driver.queue(),), transport)
    driver.add(writable=[0x200000])
    rng.notify(0)
    assert [used.written for used in driver.collect()] == [MAX_REQUEST]
    assert asked == [MAX_REQUEST]


def test_a_request_without_room_stops_the_device(
    rng: VirtioRng, ram: GuestRam, transport: FakeTransport
) -> None:
    driver = Driver(ram, 8)
    rng.activate(0, (driver.queue(),), transport)
    driver.add(readable=[b"seed"])
    with pytest.raises(GuestError, match="without room"):
        rng.notify(0)


def test_a_driver_that_refills_as_it_is_drained_has_to_take_turns(
    rng: VirtioRng, ram: GuestRam, transport: FakeTransport, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(ram, 8)
    rng.activate(0, (driver.queue(),), transport)

    def refill(size: int) -> bytes:  # another CPU of the guest, faster than we are
        driver.make_available(0)
        return bytes(size)

    monkeypatch.setattr(os, "getrandom", refill)
    driver.add(writable=[16])
    rng.notify(0)
    assert len(loop.soon) == 1, "it must come back by the loop, and once"
    assert ram.read(driver.used + 2, 2) == BATCH.to_bytes(2, "little")


def test_a_violation_in_a_later_turn_stops_the_device_too(
    rng: VirtioRng, ram: GuestRam, transport: FakeTransport, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(ram, 8)
    rng.activate(0, (driver.queue(),), transport)

    def refill(size: int) -> bytes:
        driver.make_available(0)
        return bytes(size)

    monkeypatch.setattr(os, "getrandom", refill)
    driver.add(writable=[16])
    rng.notify(0)
    driver.set_avail_idx(0x7000)
    loop.turn()
    assert len(transport.stopped) == 1


def test_nothing_happens_when_not_active(rng: VirtioRng, ram: GuestRam, transport: FakeTransport) -> None:
    done: list[bool] = []
    rng.notify(0)
    rng.deactivate(lambda: done.append(True))
    driver = Driver(ram, 8)
    rng.activate(0, (driver.queue(),), transport)
    rng.deactivate(lambda: done.append(True))
    driver.add(writable=[16])
    rng.notify(0)
    assert driver.collect() == []
    assert done == [True, True]
    rng.activate(0, (None,), transport)
    rng.notify(0)
