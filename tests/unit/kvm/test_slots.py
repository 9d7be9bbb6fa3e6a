"""Memory slots against a VM that refuses overlaps and reuse of a live slot, as KVM does."""

from __future__ import annotations

import os

import pytest

from nemu.interfaces import Doorbell
from nemu.kvm.slots import HostPages, MemorySlots
from nemu.memory import GuestRam, host_address


class FakeVm:
    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int, bool]] = {}
        self.doorbells: dict[int, int] = {}
        self.widths: dict[int, int] = {}

    def set_memory(self, slot: int, gpa: int, size: int, host: int, *, readonly: bool = False) -> None:
        if size == 0:
            assert self.slots.pop(slot)[0] == gpa
            return
        assert slot not in self.slots
        for start, length, *_ in self.slots.values():
            assert gpa + size <= start or start + length <= gpa
        self.slots[slot] = (gpa, size, host, readonly)

    def ioeventfd(self, gpa: int, eventfd: int, *, assign: bool, width: int = 0, port: bool = False) -> None:
        assert not port
        if assign:
            os.fstat(eventfd)
            self.doorbells[gpa] = eventfd
            self.widths[gpa] = width
        else:
            assert self.doorbells.pop(gpa) == eventfd


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def slots(vm: FakeVm) -> MemorySlots:
    return MemorySlots(vm)  # type: ignore[arg-type]


def test_ram_is_writable_at_every_region(vm: FakeVm, slots: MemorySlots) -> None:
    ram = GuestRam([(0, 0x10000), (1 << 32, 0x20000)])
    slots.add_ram(ram)
    hosts = [region.host_address for region in ram.regions]
    assert sorted(vm.slots.values()) == [
        (0, 0x10000, hosts[0], False),
        (1 << 32, 0x20000, hosts[1], False),
    ]
    ram.close()


def test_pages_are_read_only_at_their_own_memory(vm: FakeVm, slots: MemorySlots) -> None:
    pages = HostPages(8192)
    slots.map_pages(pages, 0x9000_0000)
    assert list(vm.slots.values()) == [(0x9000_0000, 8192, pages.host_address, True)]
    assert pages.host_address % 4096 == 0
    assert pages.host_address == host_address(pages._mapping)


def test_slot_numbers_are_used_again(vm: FakeVm, slots: MemorySlots) -> None:
    """KVM has some 32,000 of them, and a guest moves BARs as often as it likes."""
    pages, other = HostPages(4096), HostPages(4096)
    slots.map_pages(other, 0x9100_0000)
    for step in range(1000):
        gpa = 0x9000_0000 + step % 7 * 4096
        slots.map_pages(pages, gpa)
        assert set(vm.slots) == {0, 1}
        slots.unmap_pages(gpa)


def test_a_doorbell_is_at_its_offset(vm: FakeVm, slots: MemorySlots) -> None:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    slots.ring(Doorbell(0x2004, eventfd), 0x9000_0000, assign=True)
    assert vm.doorbells == {0x9000_2004: eventfd}
    assert vm.widths == {0x9000_2004: 0}
    slots.ring(Doorbell(0x2004, eventfd), 0x9000_0000, assign=False)
    assert vm.doorbells == {}
    os.close(eventfd)


def test_only_whole_registers_are_dropped_and_no_descriptor_stays(vm: FakeVm, slots: MemorySlots) -> None:
    before = os.listdir("/proc/self/fd")
    slots.drop_writes([0x8000_0018, 0x8000_001C], width=4)
    assert vm.widths == {0x8000_0018: 4, 0x8000_001C: 4}
    assert os.listdir("/proc/self/fd") == before
