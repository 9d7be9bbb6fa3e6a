"""Puts a kernel, its initrd and its command line into guest RAM.

A kernel with a PVH note starts there: a vmlinux as it is, the vmlinux in a bzImage after it
was unpacked into guest RAM, which saves the guest to do it.  Any other x86-64 kernel starts
by the 64-bit boot protocol.  Both protocols get the same memory map.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemu.arch.x86_64 import layout, linux64, pvh
from nemu.arch.x86_64.memory_map import memory_map
from nemu.boot import bzimage, elf, payload
from nemu.boot.image import ImageFile, Source
from nemu.errors import ConfigError
from nemu.memory import GuestRam

_ARCHIVE_ALIGNMENT = 4  # of each archive in an initramfs (Linux: early-userspace/buffer-format.rst)
COMMAND_LINE_SIZE = 2048  # arch/x86/include/asm/setup.h, with the NUL


_M_ARENA_MAX = -8  # mallopt(3)


@dataclass(frozen=True, slots=True)
class Entry:
    """How the first CPU starts: at ``rip`` by ``protocol``, "pvh" or "linux64".

    ``argument`` is the address of the start_info (in EBX) or of the boot_params (in RSI).
    """

    protocol: str
    rip: int
    argument: int


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel in guest RAM, which takes [start, end) for itself until it reads the memory map."""

    protocol: str
    rip: int
    start: int
    end: int
    setup_header: bytes = b""
    initrd_addr_max: int = layout.LOW_RAM_END - 1


def check(kernel: str, initrd: str, cmdline: str, memory: int) -> None:
    """Raise ConfigError for what can be told from the headers, without guest RAM of ``memory`` bytes."""
    low_end = min(memory, layout.LOW_RAM_END)
    with ImageFile("--kernel", kernel) as file:
        image = _parse(file, low_end)
        # An ELF file may be mostly debugging information; a bzImage does not get smaller in memory.
        kernel_size = image.end - image.start if isinstance(image, elf.ElfImage) else file.size
    _encode(cmdline, _cmdline_limit(image))
    if initrd:
        with ImageFile("--initrd", initrd) as file:
            if file.size > low_end - layout.KERNEL_START:
                raise file.error(f"is too large: {_mib(file.size)} MiB, with --memory {_mib(memory)}M")
            if file.size + kernel_size > low_end:
                raise file.error(f"does not fit beside the kernel into --memory {_mib(memory)}M")


def load(memory: GuestRam, *, kernel: str, initrd: str, cmdline: str, rsdp: int, extra: bytes = b"") -> Entry:
    """Load everything; ``memory`` is zero, as after power-on.

    ``initrd`` and ``cmdline`` may be ""; ``extra`` is an archive that goes behind the initrd; ``rsdp`` is the
    address of the ACPI RSDP.  Raises ConfigError for every fault of the files; guest RAM is undefined then.
    """
    low_end = memory.ranges[0][1]
    with _returned_buffers(), ImageFile("--kernel", kernel) as file:
        image = _parse(file, low_end)
        memory.write(layout.CMDLINE, _encode(cmdline, _cmdline_limit(image)) + b"\0")
        loaded = _load_kernel(memory, file, image, low_end)
    placed = _load_initrd(memory, initrd, extra, loaded, low_end) if initrd else None
    map_entries = memory_map(memory.ranges)
    if loaded.protocol == "pvh":
        info = pvh.start_info(
            layout.PVH_START_INFO, cmdline=layout.CMDLINE, rsdp=rsdp, initrd=placed, memory_map=map_entries
        )
        memory.write(layout.PVH_START_INFO, info)
        return Entry("pvh", loaded.rip, layout.PVH_START_INFO)
    params = linux64.boot_params(
        loaded.setup_header, cmdline=layout.CMDLINE, rsdp=rsdp, initrd=placed, memory_map=map_entries
    )
    memory.write(layout.ZERO_PAGE, params)
    memory.write(layout.GDT, linux64.gdt())
    memory.write(layout.BOOT_PAGE_TABLES, linux64.identity_page_tables(layout.BOOT_PAGE_TABLES))
    return Entry("linux64", loaded.rip, layout.ZERO_PAGE)


def _parse(file: ImageFile, low_end: int) -> bzimage.BzImage | elf.ElfImage:
    """Read the headers and check all that they tell."""
    head = file.peek()
    if bzimage.is_bzimage(head):
        if file.size > low_end - layout.KERNEL_START:
            raise file.error(f"is too large: {_mib(file.size)} MiB, with --memory {_mib(low_end)}M")
        return bzimage.parse(file, head)
    if not head.startswith(elf.MAGIC):
        raise file.error("is not a kernel: neither a bzImage nor an ELF file")
    vmlinux = elf.parse(file)
    if any(segment.offset + segment.file_size > file.size for segment in vmlinux.loads):
        raise file.error("is truncated")
    if elf.pvh_entry(vmlinux, file.read) is None and not vmlinux.is_linux():
        raise file.error("is not a kernel: an ELF file without a PVH note, and no x86-64 Linux either")
    _check_fit(file, vmlinux.start, vmlinux.end, low_end)
    return vmlinux


def _cmdline_limit(image: bzimage.BzImage | elf.ElfImage) -> int:
    limit = image.cmdline_size if isinstance(image, bzimage.BzImage) else COMMAND_LINE_SIZE - 1
    return min(limit, layout.CMDLINE_MAX - 1)


def _load_kernel(
    memory: GuestRam, file: ImageFile, image: bzimage.BzImage | elf.ElfImage, low_end: int
) -> _Kernel:
    if isinstance(image, elf.ElfImage):
        return _load_vmlinux(memory, file, image)
    return _load_payload(memory, file, image, low_end) or _load_bzimage(memory, file, image, low_end)


def _load_vmlinux(memory: GuestRam, file: ImageFile, image: elf.ElfImage) -> _Kernel:
    _load_segments(memory, file, image)
    entry = elf.pvh_entry(image, file.read)
    if entry is not None:
        return _Kernel("pvh", entry, image.start, image.end)
    return _Kernel("linux64", image.entry, image.start, image.end, linux64.vmlinux_setup_header())


def _load_payload(memory: GuestRam, file: ImageFile, image: bzimage.BzImage, low_end: int) -> _Kernel | None:
    """Unpack the vmlinux of a bzImage into guest RAM; None when it cannot start by PVH."""
    stream = payload.unpack(file, image.payload_offset, image.payload_length)
    if stream is None:
        return None
    if not stream.peek().startswith(elf.MAGIC):
        stream.finish()
        return None
    vmlinux = elf.parse(stream)
    if not vmlinux.notes:
        return None
    _check_fit(file, vmlinux.start, vmlinux.end, low_end)
    _load_segments(memory, stream, vmlinux)
    stream.finish()

    def read_loaded(offset: int, size: int) -> bytes:
        gpa = vmlinux.offset_to_gpa(offset, size)
        return memory.read(gpa, size) if gpa is not None and size else b""

    entry = elf.pvh_entry(vmlinux, read_loaded)
    return None if entry is None else _Kernel("pvh", entry, vmlinux.start, vmlinux.end)


def _load_segments(memory: GuestRam, source: Source, image: elf.ElfImage) -> None:
    for segment in image.loads:
        if segment.file_size:
            view = memory.view(segment.gpa, segment.file_size)
            memory.populate(segment.gpa, segment.file_size)
            source.read_at(segment.offset, view)


def _load_bzimage(memory: GuestRam, file: ImageFile, image: bzimage.BzImage, low_end: int) -> _Kernel:
    """Load the protected-mode kernel where it prefers to be: it would move itself there anyway."""
    start = image.pref_address
    end = start + image.init_size
    _check_fit(file, start, end, low_end)
    file.read_at(image.kernel_offset, memory.view(start, image.kernel_size))
    return _Kernel("linux64", image.entry, start, end, image.setup_header, image.initrd_addr_max)


def _check_fit(file: ImageFile, start: int, end: int, low_end: int) -> None:
    if start < layout.KERNEL_START:
        raise file.error(f"wants to be loaded at {start:#x}: the lowest possible address is 1 MiB")
    if end > layout.LOW_RAM_END:
        raise file.error(f"does not fit below 2 GiB: it takes {start:#x} to {end:#x}")
    if end > low_end:
        raise file.error(f"needs --memory {_mib(end)}M at least, not {_mib(low_end)}M")


def _load_initrd(memory: GuestRam, path: str, extra: bytes, kernel: _Kernel, low_end: int) -> tuple[int, int]:
    """Load the initrd, and ``extra`` behind it, as high as they fit; their (gpa, size)."""
    with ImageFile("--initrd", path) as file:
        behind = -(-file.size // _ARCHIVE_ALIGNMENT) * _ARCHIVE_ALIGNMENT if extra else file.size
        size = behind + len(extra)
        top = min(low_end, kernel.initrd_addr_max + 1)
        gpa = (top - size) & -layout.PAGE_SIZE
        if gpa < kernel.end:
            gpa = (min(top, kernel.start) - size) & -layout.PAGE_SIZE
        if gpa < layout.KERNEL_START:
            raise file.error(f"does not fit beside the kernel into --memory {_mib(low_end)}M")
        memory.populate(gpa, size)
        file.read_at(0, memory.view(gpa, file.size))
        if extra:
            memory.write(gpa + behind, extra)
        return gpa, size


def _encode(cmdline: str, limit: int) -> bytes:
    try:
        encoded = os.fsencode(cmdline)
    except UnicodeEncodeError as error:
        raise ConfigError("--append", "", f"cannot be encoded: {error.reason}") from error
    if b"\0" in encoded or b"\n" in encoded:
        raise ConfigError("--append", "", "must be one line without NUL bytes")
    if len(encoded) > limit:
        raise ConfigError("--append", "", f"is {len(encoded)} bytes long, this kernel takes at most {limit}")
    return encoded


def _mib(size: int) -> int:
    return -(-size // layout.MIB)


@contextmanager
def _returned_buffers() -> Iterator[None]:
    """Give the large buffers that were used back to the host; the C library keeps tens of MiB for later.

    One arena for all threads: it can not trim the end of the others.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    is_gnu = hasattr(libc, "malloc_trim")  # musl needs none of this
    if is_gnu:
        libc.mallopt(_M_ARENA_MAX, 1)
    try:
        yield
    finally:
        if is_gnu:
            libc.malloc_trim(0)
