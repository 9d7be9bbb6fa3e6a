"""Just enough of an assembler and a linker to make a PVH kernel out of nothing.

A tiny guest is a table of operations and a loop that runs them, in 64-bit mode.  Each entry of the table
is (handler, address, value); the handlers are the ``Op`` below.  So thousands of accesses take a few
hundred bytes of code, and what a guest does is data that Python made.
"""

from __future__ import annotations

import struct
from enum import Enum, auto

CODE = 0x10_0000  # guest-physical, with the page tables behind it
PAGE_TABLES = 0x10_1000
TABLE = 0x40_0000
OTHER_TABLE = 0xA0_0000  # what the second CPU does
TRAMPOLINE = 0x8000  # where a start-up message with vector 8 lets a CPU begin, in real mode
BUFFER = 0x30_0000  # what string I/O reads and writes
ENTRY_SIZE = 24

_LONG_CODE_SELECTOR = 8
_CODE64 = 0x00AF_9B00_0000_FFFF


class Op(Enum):
    """``address`` is a virtual address or a port, ``value`` is as wide as the name says."""

    W1, W2, W4, W8 = auto(), auto(), auto(), auto()  # store value
    R1, R2, R4, R8 = auto(), auto(), auto(), auto()  # load, and forget it
    C1, C2, C4, C8 = auto(), auto(), auto(), auto()  # load; anything but value is a failure
    P1, P2, P4, P8 = auto(), auto(), auto(), auto()  # load until it is value
    OUT1, OUT2, OUT4 = auto(), auto(), auto()
    IN1, IN2, IN4 = auto(), auto(), auto()  # anything but value is a failure
    OUTS, INS = auto(), auto()  # value bytes by one string instruction
    ADD8 = auto()  # add value to memory
    SKIP_IF8 = auto()  # pass over the next entry when memory holds value
    LOCK4 = auto()  # a locked read-modify-write: or with value
    DELAY = auto()  # value rounds of nothing
    CRASH = auto()  # an exception without a handler: triple fault
    JUMP = auto()  # run whatever is there
    HALT = auto()


class Assembler:
    """Bytes, labels, and jumps to labels that may come later."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._fixups: list[tuple[int, str, bool]] = []

    def __call__(self, text: str, *values: int) -> None:
        """Hex bytes, then each of ``values`` as a little-endian 32-bit number."""
        self._code += bytes.fromhex(text) + b"".join(struct.pack("<I", value) for value in values)

    def label(self, name: str) -> None:
        self._labels[name] = self._origin + len(self._code)

    def jump(self, text: str, name: str) -> None:
        """The instruction ``text`` with a 32-bit displacement to ``name``."""
        self(text, 0)
        self._fixups.append((len(self._code) - 4, name, True))

    def address(self, text: str, name: str) -> None:
        """The instruction ``text`` with the 32-bit address of ``name``."""
        self(text, 0)
        self._fixups.append((len(self._code) - 4, name, False))

    def link(self) -> tuple[bytes, dict[str, int]]:
        """The code, and where each label is."""
        for place, name, is_relative in self._fixups:
            target = self._labels[name] - (self._origin + place + 4 if is_relative else 0)
            struct.pack_into("<I", self._code, place, target & 0xFFFF_FFFF)
        return bytes(self._code), self._labels


def interpreter(fail_base: int, panic: int) -> tuple[bytes, bytes, dict[Op, int]]:
    """The guest's code, entered at CODE as PVH says, the trampoline of its second CPU, and the
    address of each operation's handler.

    A failed check at entry N writes a byte to ``fail_base`` + N, for the report, and then 1 to ``panic``
    (both virtual).
    """
    asm = Assembler(CODE)
    _enter_long_mode(asm)
    asm.label("start")
    asm("be", TABLE)  # mov esi
    asm.jump("e9", "next")
    asm.label("other_start")
    asm("be", OTHER_TABLE)
    asm.label("next")
    asm("488b1e 488b7e08 488b4610 4883c618 ffe3")  # rbx, rdi, rax = entry; rsi += 24; jmp rbx
    _accesses(asm)
    _port_accesses(asm)
    _handler(asm, "ADD8", "480107")
    asm.label("SKIP_IF8")
    asm("483b07")
    asm.jump("0f85", "next")
    asm("4883c618")
    asm.jump("e9", "next")
    _handler(asm, "LOCK4", "f00907")
    _handler(asm, "DELAY", "f390 48ffc8 75f9")
    asm.label("CRASH")
    asm("0f0b")
    asm.label("JUMP")
    asm("ffe7")  # jmp rdi
    asm.label("HALT")
    asm("fa f4")
    asm.jump("e9", "HALT")
    asm.label("fail")
    asm("89f0 2d", TABLE + ENTRY_SIZE)  # eax = entry * 24
    asm("31d2 b9", ENTRY_SIZE)
    asm("f7f1 bf", fail_base)  # div ecx; mov edi
    asm("4801c7 8807 bf", panic)  # add rdi, rax; mov [rdi], al
    asm("c60701")
    asm.jump("e9", "HALT")
    code, labels = asm.link()
    return code, _trampoline(labels["other_start"]), {op: labels[op.name] for op in Op}


def _accesses(asm: Assembler) -> None:
    for width, prefix in ((1, ""), (2, "66"), (4, ""), (8, "48")):
        byte = width == 1
        _handler(asm, f"W{width}", f"{prefix} {'88' if byte else '89'}07")
        _handler(asm, f"R{width}", f"{prefix} {'8a' if byte else '8b'}07")
        compare = f"{prefix} {'3a' if byte else '3b'}07"  # cmp rax, [rdi]
        asm.label(f"C{width}")
        asm(compare)
        asm.jump("0f85", "fail")
        asm.jump("e9", "next")
        asm.label(f"P{width}")
        asm(compare)
        asm.jump("0f84", "next")
        asm("f390")  # pause
        asm.jump("e9", f"P{width}")


def _port_accesses(asm: Assembler) -> None:
    for width, prefix in ((1, ""), (2, "66"), (4, "")):
        byte = width == 1
        _handler(asm, f"OUT{width}", f"89fa {prefix} {'ee' if byte else 'ef'}")
        asm.label(f"IN{width}")
        asm(f"89fa 4889c1 {prefix} {'ec' if byte else 'ed'} {prefix} {'38' if byte else '39'}c8")
        asm.jump("0f85", "fail")
        asm.jump("e9", "next")
    asm.label("OUTS")
    asm("89fa 89c1 4989f0 be", BUFFER)
    asm("f36e 4c89c6")  # rep outsb
    asm.jump("e9", "next")
    asm.label("INS")
    asm("89fa 89c1 bf", BUFFER)
    asm("f36c")  # rep insb
    asm.jump("e9", "next")


def _trampoline(start: int) -> bytes:
    """From real mode straight into 64-bit mode at ``start``."""
    asm = Assembler(TRAMPOLINE)
    asm("fa 66b8", PAGE_TABLES)
    asm("0f22d8 66b8", 1 << 5)
    asm("0f22e0 66b9", 0xC000_0080)
    asm("0f32 660d", 1 << 8)
    asm("0f30 662e0f0116 8000")  # lgdt cs:[0x80]
    asm("66b8", 1 << 31 | 1)
    asm("0f22c0 66ea", start)
    asm(struct.pack("<H", _LONG_CODE_SELECTOR).hex())
    code, _ = asm.link()
    gdtr = struct.pack("<HI", 15, TRAMPOLINE + 0x90)
    return code.ljust(0x80, b"\0") + gdtr.ljust(0x10, b"\0") + struct.pack("<QQ", 0, _CODE64)


def _handler(asm: Assembler, name: str, text: str) -> None:
    asm.label(name)
    asm(text)
    asm.jump("e9", "next")


def _enter_long_mode(asm: Assembler) -> None:
    """From 32-bit protected mode without paging."""
    asm("fa b8", PAGE_TABLES)
    asm("0f22d8 0f20e0 0d", 1 << 5)  # cr3; cr4 |= PAE
    asm("0f22e0 b9", 0xC000_0080)
    asm("0f32 0d", 1 << 8)  # EFER.LME
    asm("0f30 0f20c0 0d", 1 << 31)  # cr0 |= PG
    asm("0f22c0")
    asm.address("0f0115", "gdtr")
    asm.address("ea", "start")
    asm(struct.pack("<H", _LONG_CODE_SELECTOR).hex())
    asm.label("gdt")
    asm(struct.pack("<QQ", 0, _CODE64).hex())
    asm.label("gdtr")
    asm("0f00")
    asm.address("", "gdt")


def elf(segments: dict[int, bytes]) -> bytes:
    """An ELF64 kernel with ``segments`` by address, and a PVH note with its entry at CODE."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", CODE)
    headers, body = b"", b""
    base = 0x1000
    for address, data in segments.items():
        headers += _program_header(1, base + len(body), address, len(data))
        body += data.ljust(-(-len(data) // 16) * 16, b"\0")
    headers += _program_header(4, base + len(body), 0, len(note))
    count = len(segments) + 1
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, CODE, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return (head + headers).ljust(base, b"\0") + body + note


def _program_header(kind: int, offset: int, address: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 7, offset, address, address, size, size, 16 if kind == 1 else 4)
