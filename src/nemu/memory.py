"""Guest memory: shared mappings at guest-physical addresses, and bounds-checked access to them."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nemu.errors import GuestError, HostError

# asm-generic/mman-common.h
_MADV_POPULATE_WRITE = 23
_MAP_NORESERVE = 0x4000
MEMFD_NAME = "nemu-ram"  # also how reports tell guest RAM from our own memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def host_address(mapping: mmap.mmap) -> int:
    """The virtual address at which ``mapping`` starts in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def map_image(fd: int, size: int, *, readonly: bool) -> mmap.mmap:
    """The first ``size`` bytes of a file as memory.  Raises OSError.

    What is stored there is in the file, unless ``readonly``: then nothing can be stored, by us or by the
    host kernel on our behalf.  (A private mapping, since ``fd`` is open for reading only; no page of it is
    ever copied, so that all who map the file share the host's page cache.)
    """
    if not readonly:
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
    mapping = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE)
    if _libc.mprotect(host_address(mapping), size, mmap.PROT_READ):
        number = ctypes.get_errno()
        mapping.close()
        raise OSError(number, os.strerror(number))
    return mapping


class Region(NamedTuple):
    """``size`` bytes of guest memory at ``gpa``: ``offset`` of the file ``fd``, mapped at ``host_address``.

    What another process (vhost-user) or the host kernel (vhost) needs to reach the same memory.  That of
    a ``readonly`` one can only be mapped for reading.  ``discardable`` is memory whose contents the guest
    may throw away, that is RAM and not a file of the user's.
    """

    gpa: int
    size: int
    host_address: int
    fd: int
    offset: int
    mapping: mmap.mmap
    readonly: bool = False
    discardable: bool = False


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
        self._readable: list[tuple[int, int, memoryview]] = []
        self._writable: list[tuple[int, int, memoryview]] = []
        self._watchers: list[Callable[[], None]] = []
        try:
            os.ftruncate(self.fd, total)
            offset = 0
            for gpa, size in regions:
                mapping = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, offset=offset)
                self.add(gpa, mapping, self.fd, offset, discardable=True)
                offset += size
        except OSError as error:
            self.close()
            raise HostError(f"cannot map {total >> 20} MiB of guest memory: {error.strerror}") from error

    def add(
        self,
        gpa: int,
        mapping: mmap.mmap,
        fd: int,
        offset: int = 0,
        *,
        readonly: bool = False,
        discardable: bool = False,
    ) -> Region:
        """Make ``mapping`` (of ``fd`` from ``offset``) guest memory at ``gpa``; it is closed with the RAM.

        ``fd`` stays the caller's, open as long as this.  Showing it to the guest is for MemorySlots.
        """
        region = Region(gpa, len(mapping), host_address(mapping), fd, offset, mapping, readonly, discardable)
        self.regions.append(region)
        view = memoryview(mapping)
        self._readable.append((gpa, gpa + region.size, view.toreadonly() if readonly else view))
        if not readonly:
            self._writable.append(self._readable[-1])
        self._changed()
        return region

    def remove(self, region: Region) -> None:
        """Take away what ``add`` gave.  A view still in use keeps its mapping."""
        self.regions.remove(region)
        self._readable = [span for span in self._readable if span[0] != region.gpa]
        self._writable = [span for span in self._writable if span[0] != region.gpa]
        _unmap(region)
        self._changed()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call after each change of ``regions``."""
        self._watchers.append(callback)

    def view(self, gpa: int, length: int) -> memoryview:
        if length > 0:
            for start, end, span in self._writable:
                if start <= gpa and gpa + length <= end:
                    return span[gpa - start : gpa - start + length]
        raise GuestError(f"no RAM at {gpa:#x}, {length} bytes")

    def readable(self, gpa: int, length: int) -> memoryview:
        if length > 0:
            for start, end, span in self._readable:
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

    def discard(self, gpa: int, length: int) -> None:
        """Give the host memory of a page-aligned range back: it reads as zeroes afterwards.

        Whatever the guest names here, only RAM is thrown away: in a file of the user's nothing happens.
        Raises GuestError where there is no memory at all.
        """
        while length > 0:
            region = next((one for one in self.regions if one.gpa <= gpa < one.gpa + one.size), None)
            if region is None:
                raise GuestError(f"no RAM at {gpa:#x}, {length} bytes")
            start = gpa - region.gpa
            part = min(length, region.size - start)
            if region.discardable:
                # Not by mapping.madvise, which keeps every other thread of ours waiting meanwhile.
                _libc.madvise(region.host_address + start, part, mmap.MADV_REMOVE)
            gpa, length = gpa + part, length - part

    def gpa(self, view: memoryview) -> int:
        """Where ``view`` starts, which this gave out."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        for region in self.regions:
            if 0 <= address - region.host_address < region.size:
                return region.gpa + address - region.host_address
        raise ValueError("a view of other memory")

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.readable(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self.view(gpa, len(data))[:] = data

    def close(self) -> None:
        """Give the memory back.  A view still in use (an I/O in flight) keeps its region mapped."""
        self._watchers.clear()
        self._readable.clear()
        self._writable.clear()
        while self.regions:
            _unmap(self.regions.pop())
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unwatch(self, callback: Callable[[], None]) -> None:
        """No more.  No effect on one that does not watch."""
        if callback in self._watchers:
            self._watchers.remove(callback)

    def _changed(self) -> None:
        for callback in self._watchers.copy():
            callback()


class DeviceMemory:
    """Guest-physical addresses, [``start``, ``end``), for memory beside RAM: persistent memory, DIMMs.

    Each piece starts at a multiple of ALIGNMENT.  That is the largest page that maps memory to a guest, and
    a multiple of what Linux adds memory in, so that no two pieces share such a page or block.
    """

    ALIGNMENT = 1 << 30

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end
        self._pieces: dict[int, int] = {}  # address -> size with what fills it up to a multiple of ALIGNMENT

    def allocate(self, size: int) -> int:
        """The address of a new piece, the lowest that fits.  Raises ValueError where none does."""
        gpa = self._start
        largest = 0
        for start, length in sorted([*self._pieces.items(), (self._end, 0)]):
            if size <= start - gpa:
                self._pieces[gpa] = -(-size // self.ALIGNMENT) * self.ALIGNMENT
                return gpa
            largest = max(largest, start - gpa)
            gpa = start + length
        raise ValueError(f"needs {size >> 20} MiB of guest addresses, {largest >> 20} MiB are left")

    def free(self, gpa: int) -> None:
        """Give back what ``allocate`` gave."""
        del self._pieces[gpa]


def _unmap(region: Region) -> None:
    try:
        region.mapping.close()
    except BufferError:
        pass  # closed with the last view of it
