"""Guest RAM: one shared memfd, mapped region by region, and bounds-checked access to it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence

from nemu.errors import GuestError, HostError

_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h
MEMFD_NAME = "nemu-ram"  # also how reports tell guest RAM from our own memory


def host_address(mapping: mmap.mmap) -> int:
    """The virtual address at which ``mapping`` starts in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class GuestRam:
    """The RAM regions of a machine, implementing interfaces.GuestMemory.

    ``regions`` are (gpa, size) pairs, page-aligned and disjoint.  Host memory is taken only
    as the guest touches it, so the sum may exceed what the host has.  The memfd is shared,
    so that other processes (vhost-user) can map the same RAM: region N lies in it behind
    the regions before it.
    """

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        self.regions = tuple(regions)
        total = sum(size for _, size in regions)
        self.fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
        self._mappings: list[mmap.mmap] = []
        self._spans: list[tuple[int, int, memoryview]] = []
        try:
            os.ftruncate(self.fd, total)
            offset = 0
            for gpa, size in regions:
                mapping = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, offset=offset)
                self._mappings.append(mapping)
                self._spans.append((gpa, gpa + size, memoryview(mapping)))
                offset += size
        except OSError as error:
            self.close()
            raise HostError(f"cannot map {total >> 20} MiB of guest memory: {error.strerror}") from error

    @property
    def host_addresses(self) -> tuple[int, ...]:
        """The host virtual address of each region, in the order of ``regions``."""
        return tuple(host_address(mapping) for mapping in self._mappings)

    def view(self, gpa: int, length: int) -> memoryview:
        if length > 0:
            for start, end, span in self._spans:
                if start <= gpa and gpa + length <= end:
                    return span[gpa - start : gpa - start + length]
        raise GuestError(f"no RAM at {gpa:#x}, {length} bytes")

    def populate(self, gpa: int, length: int) -> None:
        """Take the host memory of a range now, at once: far cheaper than page by page as it is written."""
        for mapping, (start, end, _) in zip(self._mappings, self._spans, strict=True):
            if start <= gpa and gpa + length <= end:
                first = (gpa - start) & -mmap.PAGESIZE
                try:
                    mapping.madvise(_MADV_POPULATE_WRITE, first, gpa - start + length - first)
                except OSError:  # before Linux 5.14; or no memory left, which the write itself will tell
                    return

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self.view(gpa, len(data))[:] = data

    def close(self) -> None:
        """Give the memory back.  A view still in use (an I/O in flight) keeps its region mapped."""
        self._spans.clear()
        for mapping in self._mappings:
            try:
                mapping.close()
            except BufferError:
                continue
        self._mappings.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
