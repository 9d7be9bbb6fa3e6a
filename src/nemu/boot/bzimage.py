"""The header of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

A bzImage is a boot sector and setup code of 512-byte sectors, then the "protected-mode
kernel": a small decompressor around a payload, which is the compressed vmlinux.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nemu.boot.image import ImageFile

_SECTOR = 512
_MAGIC_OFFSET = 0x202
_HEADER_START = 0x1F1
_HEADER_NEEDED = 0x264  # up to init_size
_PROTOCOL_2_12 = 0x020C  # the first one that tells about a 64-bit entry (Linux 3.8)
_XLF_KERNEL_64 = 1 << 0
_ENTRY_64 = 0x200  # the 64-bit entry lies this far into the protected-mode kernel


@dataclass(frozen=True, slots=True)
class BzImage:
    """What a boot loader needs of a bzImage.  Offsets and sizes are in bytes of the file."""

    setup_header: bytes  # from 0x1F1 on, as it goes into boot_params
    kernel_offset: int  # of the protected-mode kernel
    kernel_size: int
    payload_offset: int
    payload_length: int  # 0: the kernel does not tell
    cmdline_size: int  # longest command line, without its NUL
    initrd_addr_max: int
    pref_address: int
    init_size: int  # memory that the kernel needs from its load address on, before it looks at the map

    @property
    def entry(self) -> int:
        """The 64-bit entry when the kernel lies at ``pref_address``."""
        return self.pref_address + _ENTRY_64


def is_bzimage(head: bytes) -> bool:
    return head[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == b"HdrS"


def parse(file: ImageFile, head: bytes) -> BzImage:
    """Read the header; ConfigError for a kernel that is truncated, too old or 32-bit only."""
    if len(head) < _HEADER_NEEDED:
        raise file.error("is truncated: it ends within its header")
    (version,) = struct.unpack_from("<H", head, 0x206)
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    if version < _PROTOCOL_2_12 or not xloadflags & _XLF_KERNEL_64:
        raise file.error("is a 32-bit kernel, or older than Linux 3.8: an x86-64 kernel is needed")
    kernel_offset = ((head[_HEADER_START] or 4) + 1) * _SECTOR
    kernel_size = struct.unpack_from("<I", head, 0x1F4)[0] * 16  # syssize counts paragraphs
    missing = kernel_offset + kernel_size - file.size
    if missing > 0:
        raise file.error(f"is truncated: {missing} bytes are missing")
    if kernel_size <= _ENTRY_64:
        raise file.error("is corrupt: it holds no code behind its setup")
    payload_offset, payload_length = struct.unpack_from("<II", head, 0x248)
    if payload_offset + payload_length > kernel_size:
        raise file.error("is corrupt: its payload does not lie inside it")
    initrd_addr_max, cmdline_size = (struct.unpack_from("<I", head, at)[0] for at in (0x22C, 0x238))
    pref_address, init_size = struct.unpack_from("<QI", head, 0x258)
    return BzImage(
        setup_header=head[_HEADER_START : _MAGIC_OFFSET + head[0x201]],
        kernel_offset=kernel_offset,
        kernel_size=kernel_size,
        payload_offset=kernel_offset + payload_offset,
        payload_length=payload_length,
        cmdline_size=cmdline_size,
        initrd_addr_max=initrd_addr_max,
        pref_address=pref_address,
        init_size=max(init_size, kernel_size),
    )
