"""Builders of small kernels: an ELF vmlinux and a bzImage around a payload, packed as Linux packs it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import lz4.block
import zstandard

MIB = 1 << 20
TEXT_GPA = 16 * MIB
VIRTUAL = 0xFFFF_FFFF_8100_0000
LZ4_MAGIC = struct.pack("<I", 0x184C2102)


def xen_note(entry: int, size: int = 4) -> bytes:
    """The note as a kernel has it: first another one, then type 18 with an entry of ``size`` bytes."""
    other = struct.pack("<III4s8s", 4, 6, 6, b"Xen\0", b"linux\0\0\0")
    return other + struct.pack("<III4s", 4, size, 18, b"Xen\0") + entry.to_bytes(size, "little")


@dataclass
class Elf:
    """A two-segment kernel: text with the notes at its end, then data with a bss."""

    text: bytes = b"\x90" * 5000
    data: bytes = bytes(range(256)) * 8
    bss: int = 4096
    text_gpa: int = TEXT_GPA
    data_gpa: int = TEXT_GPA + 2 * MIB
    virtual: int = VIRTUAL
    note: bytes | None = field(default_factory=lambda: xen_note(TEXT_GPA + 0x10))
    machine: int = 62
    elf_class: int = 2
    entry: int = TEXT_GPA
    tail: bytes = b"relocations" * 100

    def build(self) -> bytes:
        note = self.note or b""
        text = self.text + note
        text_offset, data_offset = 0x1000, 0x1000 + (len(text) + 0xFFF & ~0xFFF)
        headers = [
            struct.pack(
                "<IIQQQQQQ", 1, 5, text_offset, self.virtual, self.text_gpa, len(text), len(text), 0x1000
            ),
            struct.pack(
                "<IIQQQQQQ",
                1,
                6,
                data_offset,
                self.virtual + 2 * MIB,
                self.data_gpa,
                len(self.data),
                len(self.data) + self.bss,
                0x1000,
            ),
        ]
        if self.note is not None:
            where = len(self.text)
            headers.append(
                struct.pack(
                    "<IIQQQQQQ",
                    4,
                    4,
                    text_offset + where,
                    self.virtual + where,
                    self.text_gpa + where,
                    len(note),
                    len(note),
                    4,
                )
            )
        ident = b"\x7fELF" + bytes([self.elf_class, 1, 1]) + bytes(9)
        head = struct.pack(
            "<16sHHIQQQIHHHHHH",
            ident,
            2,
            self.machine,
            1,
            self.entry,
            64,
            0,
            0,
            64,
            56,
            len(headers),
            0,
            0,
            0,
        )
        body = (head + b"".join(headers)).ljust(text_offset, b"\0") + text
        return body.ljust(data_offset, b"\0") + self.data + self.tail


def with_size(packed: bytes, plain: bytes) -> bytes:
    """The size that Linux's build appends for every format but gzip."""
    return packed + struct.pack("<I", len(plain))


def lz4_legacy(plain: bytes) -> bytes:
    blocks = [
        lz4.block.compress(plain[at : at + 8 * MIB], store_size=False) for at in range(0, len(plain), 8 * MIB)
    ]
    return LZ4_MAGIC + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def xz(plain: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 * MIB}]
    return lzma.compress(plain, check=lzma.CHECK_CRC32, filters=filters)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": lambda plain: with_size(bz2.compress(plain), plain),
    "lzma": lambda plain: with_size(lzma.compress(plain, format=lzma.FORMAT_ALONE), plain),
    "xz": lambda plain: with_size(xz(plain), plain),
    "lz4": lambda plain: with_size(lz4_legacy(plain), plain),
    "zstd": lambda plain: with_size(zstandard.ZstdCompressor(level=3).compress(plain), plain),
}


def bzimage(
    payload: bytes,
    *,
    version: int = 0x20F,
    xloadflags: int = 1,
    cmdline_size: int = 2047,
    pref_address: int = TEXT_GPA,
    init_size: int = 8 * MIB,
    initrd_addr_max: int = 0x7FFF_FFFF,
    payload_length: int | None = None,
    setup_sects: int = 3,
) -> bytes:
    """A bzImage whose protected-mode kernel is 0x400 recognisable bytes and then ``payload``."""
    code = (b"decompressor" * 100)[:0x400]
    body = (code + payload).ljust(-(-(len(code) + len(payload)) // 16) * 16, b"\0")
    setup = bytearray((setup_sects + 1) * 512)
    setup[0x1EF] = 0xFF  # the sentinel: must not get into boot_params
    struct.pack_into("<BHI", setup, 0x1F1, setup_sects, 0, len(body) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"  # a jump over the header: its end is 0x202 + 0x6A
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", version)
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<HI", setup, 0x236, xloadflags, cmdline_size)
    struct.pack_into(
        "<II", setup, 0x248, len(code), len(payload) if payload_length is None else payload_length
    )
    struct.pack_into("<QI", setup, 0x258, pref_address, init_size)
    return bytes(setup) + body
