"""Memory devices (DIMMs) that come and go."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nemu.config.cpus import BLOCK
from nemu.errors import HostError
from nemu.memory import MEMFD_NAME
from nemu.plug import PlugError
from nemu.syntax import show_size

if TYPE_CHECKING:
    from nemu.devices.hotplug import HotplugController
    from nemu.machine import Machine
    from nemu.memory import Region


class Dimm(NamedTuple):
    """``size`` bytes of ``fd`` (a file without a name), which lasts over reboots."""

    fd: int
    size: int
    folder: str = ""  # where the file is; "": a memfd

    def close(self) -> None:
        os.close(self.fd)


def new_dimm(size: int, folder: str = "") -> Dimm:
    """Fresh memory of ``size`` bytes, of the file system (hugetlbfs, tmpfs) at ``folder`` if one is given.

    It is a file without a name: nobody else can shorten it, nor is anything left.  Raises PlugError,
    HostError.
    """
    if size <= 0 or size % BLOCK:
        raise PlugError(f"a memory device has a multiple of {show_size(BLOCK)}, not {show_size(size)}")
    fd = _open_in(folder) if folder else os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise HostError(f"cannot make a memory device of {show_size(size)}: {error.strerror}") from error
    return Dimm(fd, size, folder)


def _open_in(folder: str) -> int:
    """A new file without a name in ``folder``."""
    if not os.path.isdir(folder):
        raise PlugError(f"{folder}: must be a directory, such as /dev/shm or that of a hugetlbfs")
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlugError(f"{folder}: cannot make a file for memory: {error.strerror}") from error


class DimmSlots:
    """The memory devices of ``machine``: at most ``count``, of at most ``room`` bytes together."""

    def __init__(self, machine: Machine, count: int, room: int) -> None:
        self._machine = machine
        self._room = room
        self._regions: dict[int, tuple[Dimm, Region]] = {}
        self.count = count
        self.slots: HotplugController | None = None
        self.removed: Callable[[int, Dimm], None] = lambda slot, dimm: dimm.close()

    @property
    def present(self) -> dict[int, tuple[Dimm, Region]]:
        """Each memory device with its place, by slot."""
        return dict(self._regions)

    def start_with(self, slot: int, dimm: Dimm) -> None:
        """Have ``dimm`` in ``slot`` before the machine runs."""
        assert self.slots
        self._add(self.slots, slot, dimm)
        self.slots.occupy(slot)

    def plug(self, dimm: Dimm, slot: int | None = None) -> int:
        """Add ``dimm``, in the first free slot unless ``slot`` is given, and tell the guest: its slot."""
        if self.slots is None:
            raise PlugError("this machine has no slots for memory (--memory SIZE,max=SIZE,slots=N)")
        used = sum(region.size for _, region in self._regions.values())
        if used + dimm.size > self._room:
            left = show_size(self._room - used) if used < self._room else "none"
            raise PlugError(f"{show_size(dimm.size)} is more than can be added: {left} is left of max")
        if slot is None:
            free = [number for number in range(self.count) if number not in self._regions]
            if not free:
                raise PlugError(f"all {self.count} memory slots are taken")
            slot = free[0]
        elif not 0 <= slot < self.count or slot in self._regions:
            raise PlugError(f"memory slot {slot} is taken, or not one of 0 to {self.count - 1}")
        self._add(self.slots, slot, dimm)
        self.slots.plug(slot)
        return slot

    def request_removal(self, slot: int) -> None:
        """Ask the guest to let go of the memory in ``slot``; one that uses it refuses (``_OST``)."""
        if self.slots is None or slot not in self._regions:
            raise PlugError(f"there is no memory device in slot {slot}")
        self.slots.request_removal(slot)

    def ejected(self, slot: int) -> None:
        """The guest has let go of it."""
        dimm, region = self._regions.pop(slot)
        self._machine.slots.remove_region(region)
        self._machine.ram.remove(region)
        self._machine.device_memory.free(region.gpa)
        self.removed(slot, dimm)

    def _add(self, slots: HotplugController, slot: int, dimm: Dimm) -> None:
        try:
            gpa = self._machine.device_memory.allocate(dimm.size)
        except ValueError as error:
            raise PlugError(str(error)) from None
        try:
            mapping = mmap.mmap(dimm.fd, dimm.size, flags=mmap.MAP_SHARED)
        except OSError as error:
            self._machine.device_memory.free(gpa)
            raise HostError(f"cannot map {show_size(dimm.size)} of memory: {error.strerror}") from error
        region = self._machine.ram.add(gpa, mapping, dimm.fd, discardable=True)
        self._machine.slots.add_region(region)
        self._regions[slot] = (dimm, region)
        slots.describe(slot, gpa, dimm.size)
