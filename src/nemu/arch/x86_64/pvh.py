"""The start information of the PVH boot protocol (Xen public headers, arch-x86/hvm/start_info.h).

The guest starts in 32-bit protected mode without paging, EBX pointing at ``hvm_start_info``:

====== ===== ============================================================
offset bytes field
====== ===== ============================================================
0      4     magic, "xEn3" with bit 7 of the E set
4      4     version, 1: with a memory map
8      4     flags
12     4     nr_modules, the first one is the initrd
16     8     modlist_paddr
24     8     cmdline_paddr
32     8     rsdp_paddr
40     8     memmap_paddr
48     4     memmap_entries
52     4     reserved
====== ===== ============================================================

A module is paddr, size, cmdline_paddr, reserved (8 bytes each); an entry of the map is
addr, size (8 bytes each), type, reserved (4 bytes each).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nemu.arch.x86_64.memory_map import MapEntry

MAGIC = 0x336EC578
VERSION = 1

_START_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")


def start_info(
    gpa: int,
    *,
    cmdline: int,
    rsdp: int,
    initrd: tuple[int, int] | None,
    memory_map: Sequence[MapEntry],
) -> bytes:
    """``hvm_start_info`` for ``gpa``, its module list and memory map right behind it.

    ``cmdline`` and ``rsdp`` are the addresses of the NUL-terminated command line and of the
    RSDP; ``initrd`` is (gpa, size).
    """
    modules = b"" if initrd is None else _MODULE.pack(initrd[0], initrd[1], 0, 0)
    entries = b"".join(_MAP_ENTRY.pack(entry.gpa, entry.size, entry.kind, 0) for entry in memory_map)
    modlist = gpa + 64  # start_info rounded up, so that both tables are aligned to 8
    memmap = modlist + len(modules)
    head = _START_INFO.pack(
        MAGIC,
        VERSION,
        0,
        len(modules) // _MODULE.size,
        modlist if modules else 0,
        cmdline,
        rsdp,
        memmap,
        len(memory_map),
        0,
    )
    return head.ljust(64, b"\0") + modules + entries
