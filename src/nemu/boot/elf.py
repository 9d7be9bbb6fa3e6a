"""ELF64 kernels: what to load where, and the entry point of the PVH note.

Sources: the System V ABI, chapters 4 and 5 (ELF header, program header, note section), and
Xen's public ``elfnote.h`` (XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from nemu.boot.image import PEEK_SIZE, Source

MAGIC = b"\x7fELF"
_CLASS_64 = 2
_DATA_LITTLE = 1
_MACHINE_X86_64 = 62
_PT_LOAD = 1
_PT_NOTE = 4
_XEN_PHYS32_ENTRY = 18
_NOTES_MAX = PEEK_SIZE  # more than a kernel's notes ever take
_KERNEL_HALF = 1 << 63  # Linux is linked into the upper half of the virtual addresses

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")

_NOTHING_TO_LOAD = "is not a kernel: an ELF file without anything to load"

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header: ``file_size`` bytes at ``offset`` go to ``gpa``, the rest of ``size`` is zero."""

    offset: int
    gpa: int
    virtual: int
    file_size: int
    size: int
    align: int

    @property
    def end(self) -> int:
        return self.gpa + self.size

    def holds(self, gpa: int) -> bool:
        return self.gpa <= gpa < self.end


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An x86-64 ELF file.  ``loads`` is not empty, in order of the offset in the file."""

    entry: int  # physical in a kernel
    loads: tuple[Segment, ...]
    notes: tuple[Segment, ...]

    @property
    def start(self) -> int:
        return min(segment.gpa for segment in self.loads)

    @property
    def end(self) -> int:
        return max(segment.end for segment in self.loads)

    def holds(self, gpa: int) -> bool:
        return any(segment.holds(gpa) for segment in self.loads)

    def is_linux(self) -> bool:
        """Whether this is linked as a Linux kernel is, whose ELF entry is its 64-bit entry point."""
        return self.holds(self.entry) and any(segment.virtual >= _KERNEL_HALF for segment in self.loads)

    def offset_to_gpa(self, offset: int, size: int) -> int | None:
        """Where ``size`` bytes at ``offset`` of the file are loaded; None if they are not."""
        for segment in self.loads:
            if segment.offset <= offset and offset + size <= segment.offset + segment.file_size:
                return segment.gpa + offset - segment.offset
        return None


def parse(source: Source) -> ElfImage:
    """Read the headers; ConfigError when they are not those of an x86-64 kernel."""
    head = source.peek()
    if len(head) < _HEADER.size:
        raise source.error("is truncated: it ends within its ELF header")
    ident, _type, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = _HEADER.unpack_from(head)
    if ident[4] != _CLASS_64:
        raise source.error("is a 32-bit kernel: an x86-64 kernel is needed")
    if ident[5] != _DATA_LITTLE or machine != _MACHINE_X86_64:
        raise source.error("is a kernel for another architecture: an x86-64 kernel is needed")
    if not phnum:
        raise source.error(_NOTHING_TO_LOAD)
    if phentsize != _PROGRAM_HEADER.size or phoff + phnum * phentsize > len(head):
        raise source.error("is corrupt: its ELF program headers are not where they should be")
    loads: list[Segment] = []
    notes: list[Segment] = []
    for index in range(phnum):
        kind, _, offset, virtual, gpa, file_size, size, align = _PROGRAM_HEADER.unpack_from(
            head, phoff + index * phentsize
        )
        segment = Segment(offset, gpa, virtual, file_size, size, align)
        if kind == _PT_LOAD and size:
            if file_size > size:
                raise source.error("is corrupt: a segment is larger in the file than in memory")
            loads.append(segment)
        elif kind == _PT_NOTE and file_size <= _NOTES_MAX:
            notes.append(segment)
    if not loads:
        raise source.error(_NOTHING_TO_LOAD)
    if _overlap(loads):  # else a small file could ask for any amount of copying
        raise source.error("is corrupt: its segments overlap")
    return ElfImage(entry, tuple(sorted(loads, key=lambda segment: segment.offset)), tuple(notes))


def _overlap(loads: list[Segment]) -> bool:
    by_address = sorted(loads, key=lambda segment: segment.gpa)
    return any(first.end > second.gpa for first, second in pairwise(by_address))


def pvh_entry(image: ElfImage, read: ReadAt) -> int | None:
    """The 32-bit physical entry point of the Xen note; None without one, or if nothing is loaded there.

    ``read`` gives bytes of the image by offset, fewer or none where there are none.
    """
    for segment in image.notes:
        for name, kind, description in _notes(read(segment.offset, segment.file_size), segment.align):
            if name == b"Xen\0" and kind == _XEN_PHYS32_ENTRY and len(description) in {4, 8}:
                entry = int.from_bytes(description, "little")
                return entry if image.holds(entry) else None
    return None


def _notes(data: bytes, align: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, description) of each note; stops where the data does not make sense."""
    step = 8 if align == 8 else 4
    position = 0
    while position + _NOTE.size <= len(data):
        name_size, description_size, kind = _NOTE.unpack_from(data, position)
        name = position + _NOTE.size
        description = -(-(name + name_size) // step) * step
        end = description + description_size
        if end > len(data):
            return
        yield data[name : name + name_size], kind, data[description:end]
        position = -(-end // step) * step
