"""Guest memory: shared mappings at guest-physical addresses, and bounds-checked access to them."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nemu.errors import GuestError, HostError

_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h
MEMFD_NAME = "nemu-ram"  # also how reports tell guest RAM from our own memory


def host_address(mapping: mmap.mmap) -> int:
    """The virtual address at which ``mapping`` starts in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class Region(NamedTuple):
    """``size`` bytes of guest memory at ``gpa``: ``offset`` of the file ``fd``, mapped at ``host_address``.

    What another process (vhost-user) or the host kernel (vhost) needs to reach the same memory.
    """

    gpa: int
    size: int
    host_address: int
    fd: int
    offset: int
    mapping: mmap.mmap


class GuestRam:
    """The memory of a machine, implementing interfaces.GuestMemory.

    ``regions`` are (gpa, size) pairs of RAM, page-aligned and disjoint; they lie one behind the other in one
    shared memfd.  Host memory is taken only as the guest touches it, so the sum may exceed what the host
    has.  ``ranges`` are what was given; ``regions`` has also what was added (files: persistent memory).
    """

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        self.ranges = tuple(regions)
        total = sum(size for _, size in regions)
        self.fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
        self.regions: list[Region] = []
        self._spans: list[tuple[int, int, memoryview]] = []
        self._watchers: list[Callable[[], None]] = []
        try:
            os.ftruncate(self.fd, total)
            offset = 0
            for gpa, size in regions:
                self.add(gpa, mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, offset=offset), self.fd, offset)
                offset += size
        except OSError as error:
            self.close()
            raise HostError(f"cannot map {total >> 20} MiB of guest memory: {error.strerror}") from error

    def add(self, gpa: int, mapping: mmap.mmap, fd: int, offset: int = 0) -> Region:
        """Make ``mapping`` (of ``fd`` from ``offset``) guest memory at ``gpa``; it is closed with the RAM.

        ``fd`` stays the caller's, open as long as this.  Showing it to the guest is for MemorySlots.
        """
        region = Region(gpa, len(mapping), host_address(mapping), fd, offset, mapping)
        self.regions.append(region)
        self._spans.append((gpa, gpa + region.size, memoryview(mapping)))
        self._changed()
        return region

    def watch(self, callback: Callable[[], None]) -> None:
        """Call after each change of ``regions``."""
        self._watchers.append(callback)

    def view(self, gpa: int, length: int) -> memoryview:
        if length > 0:
            for start, end, span in self._spans:
                if start <= gpa and gpa + length <= end:
                    return span[gpa - start : gpa - start + length]
        raise GuestError(f"no RAM at {gpa:#x}, {length} bytes")

    def host_address(self, gpa: int, length: int) -> int:
        """The virtual address here of ``length`` bytes at ``gpa``.  Raises GuestError as ``view`` does."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                return region.host_address + gpa - region.gpa
        raise GuestError(f"no RAM at {gpa:#x}, {length} bytes")

    def populate(self, gpa: int, length: int) -> None:
        """Take the host memory of a range now, at once: far cheaper than page by page as it is written."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                first = (gpa - region.gpa) & -mmap.PAGESIZE
                try:
                    region.mapping.madvise(_MADV_POPULATE_WRITE, first, gpa - region.gpa + length - first)
                except OSError:  # before Linux 5.14; or no memory left, which the write itself will tell
                    return

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self.view(gpa, len(data))[:] = data

    def close(self) -> None:
        """Give the memory back.  A view still in use (an I/O in flight) keeps its region mapped."""
        self._watchers.clear()
        self._spans.clear()
        while self.regions:
            try:
                self.regions.pop().mapping.close()
            except BufferError:
                continue
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _changed(self) -> None:
        for callback in self._watchers:
            callback()
