"""Memory slots and doorbells: how the bus reaches KVM (implements bus.address_space.Backing)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nemu.memory import host_address

if TYPE_CHECKING:
    from nemu.interfaces import Doorbell, Pages
    from nemu.kvm.handles import Vm
    from nemu.memory import GuestRam, Region

PAGE_SIZE = 4096


class HostPages:
    """Anonymous host pages (interfaces.Pages) that a memory slot shows to the guest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._mapping = mmap.mmap(-1, size)
        self.view = memoryview(self._mapping)
        self.host_address = host_address(self._mapping)


class MemorySlots:
    """The memory slots of a VM: RAM, and pages that come and go."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._free: list[int] = []
        self._next = 0
        self._regions: dict[int, int] = {}  # gpa -> slot
        self._mapped: dict[int, tuple[int, Pages]] = {}  # gpa -> slot; holds the pages while KVM does

    def add_ram(self, ram: GuestRam) -> None:
        for region in ram.regions:
            self.add_region(region)

    def add_region(self, region: Region, *, readonly: bool = False) -> None:
        """Show a region of guest memory to the guest; its writes exit only where ``readonly``."""
        slot = self._regions[region.gpa] = self._take()
        self._vm.set_memory(slot, region.gpa, region.size, region.host_address, readonly=readonly)

    def remove_region(self, region: Region) -> None:
        """Take a region away from the guest."""
        slot = self._regions.pop(region.gpa)
        self._vm.set_memory(slot, region.gpa, 0, 0)
        self._free.append(slot)

    def map_pages(self, pages: Pages, gpa: int, *, readonly: bool = True) -> None:
        """Show ``pages`` to the guest at ``gpa``; unless ``readonly`` its writes do not exit either."""
        slot = self._take()
        host = ctypes.addressof(ctypes.c_char.from_buffer(pages.view))
        self._vm.set_memory(slot, gpa, pages.size, host, readonly=readonly)
        self._mapped[gpa] = (slot, pages)

    def unmap_pages(self, gpa: int) -> None:
        slot, _ = self._mapped.pop(gpa)
        self._vm.set_memory(slot, gpa, 0, 0)
        self._free.append(slot)

    def ring(self, doorbell: Doorbell, gpa: int, *, assign: bool) -> None:
        self._vm.ioeventfd(gpa + doorbell.offset, doorbell.eventfd, assign=assign)

    def drop_writes(self, addresses: Iterable[int], *, width: int = 0, port: bool = False) -> None:
        """Let the kernel drop guest writes of ``width`` bytes (0: any) where a write changes nothing.

        To the guest it is the same, to us an exit less.  KVM drops a write that signals an eventfd;
        nobody listens to this one.
        """
        eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            for address in addresses:
                self._vm.ioeventfd(address, eventfd, assign=True, width=width, port=port)
        finally:
            os.close(eventfd)  # KVM holds it

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1
