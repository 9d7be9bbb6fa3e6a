"""A program of a tiny guest: accesses to guest-physical addresses, compiled to an ELF kernel."""

from __future__ import annotations

import struct

from nemu.arch.x86_64 import layout
from tiny import asm
from tiny.asm import Op

_STORE = {1: Op.W1, 2: Op.W2, 4: Op.W4, 8: Op.W8}
_LOAD = {1: Op.R1, 2: Op.R2, 4: Op.R4, 8: Op.R8}
_CHECK = {1: Op.C1, 2: Op.C2, 4: Op.C4, 8: Op.C8}
_WAIT = {1: Op.P1, 2: Op.P2, 4: Op.P4, 8: Op.P8}
_OUT = {1: Op.OUT1, 2: Op.OUT2, 4: Op.OUT4}
_IN = {1: Op.IN1, 2: Op.IN2, 4: Op.IN4}

# Where nothing is: a failed check at entry N writes to the byte N of it.
FAILED = 0xFEB0_0000
_BIG_PAGE = 2 << 20
_SECOND_CPU_DONE = asm.BUFFER - 8
_IDENTITY = 1 << 30  # virtual = physical below; windows on anything else above
_PRESENT_WRITABLE, _BIG = 3, 1 << 7


class Program:
    """Operations in order.  Every ``gpa`` is guest-physical; an access may straddle anything."""

    def __init__(self) -> None:
        self._entries: list[tuple[Op, int, int]] = []
        self._frames: dict[int, int] = {}  # 2 MiB frame -> number of its window
        self._other: Program | None = None

    def write(self, gpa: int, width: int, value: int) -> None:
        self._add(_STORE[width], self._virtual(gpa), value & (1 << 8 * width) - 1)

    def read(self, gpa: int, width: int) -> None:
        self._add(_LOAD[width], self._virtual(gpa))

    def check(self, gpa: int, width: int, value: int) -> None:
        """Panic unless the load gives ``value``."""
        self._add(_CHECK[width], self._virtual(gpa), value)

    def wait(self, gpa: int, width: int, value: int) -> None:
        """Load until it is ``value``; a device that never gets there ends in ``--timeout``."""
        self._add(_WAIT[width], self._virtual(gpa), value)

    def lock_or(self, gpa: int, value: int) -> None:
        self._add(Op.LOCK4, self._virtual(gpa), value)

    def fill(self, gpa: int, data: bytes) -> None:
        """Write ``data`` in pieces of 8 bytes."""
        for start in range(0, len(data), 8):
            part = data[start : start + 8].ljust(8, b"\0")
            self.write(gpa + start, 8, int.from_bytes(part, "little"))

    def port_out(self, port: int, width: int, value: int) -> None:
        self._add(_OUT[width], port, value)

    def port_in(self, port: int, width: int, value: int) -> None:
        """Panic unless the port gives ``value``."""
        self._add(_IN[width], port, value)

    def string_io(self, port: int, count: int, *, out: bool) -> None:
        self._add(Op.OUTS if out else Op.INS, port, count)

    def add(self, gpa: int, value: int) -> None:
        self._add(Op.ADD8, self._virtual(gpa), value)

    def skip_if(self, gpa: int, value: int) -> None:
        """Leave the next operation out when memory holds ``value`` (8 bytes)."""
        self._add(Op.SKIP_IF8, self._virtual(gpa), value)

    def delay(self, rounds: int) -> None:
        self._add(Op.DELAY, 0, rounds)

    def start_other_cpu(self) -> Program:
        """Wake the second CPU by INIT and start-up messages; what it does is the result."""
        _, trampoline, _ = asm.interpreter(0, 0)
        self.fill(asm.TRAMPOLINE, trampoline)
        icr = layout.LAPIC + 0x300
        for message in (0xC4500, 0xC4600 | asm.TRAMPOLINE >> 12, 0xC4600 | asm.TRAMPOLINE >> 12):
            self.write(icr, 4, message)  # to all but this one
            self.delay(1000)
        self._other = Program()
        self._other._frames = self._frames
        return self._other

    def join_other_cpu(self) -> None:
        """Wait until the second CPU has done everything."""
        assert self._other is not None
        self._other.write(_SECOND_CPU_DONE, 8, 1)
        self._other.halt()
        self.wait(_SECOND_CPU_DONE, 8, 1)

    def crash(self) -> None:
        self._add(Op.CRASH, 0)

    def jump(self, gpa: int) -> None:
        self._add(Op.JUMP, self._virtual(gpa))

    def halt(self) -> None:
        self._add(Op.HALT, 0)

    def panic(self) -> None:
        self.write(layout.PVPANIC, 1, 1)
        self.halt()

    def reset(self) -> None:
        self.write(layout.POWER + 2, 1, 0x52)

    def power_off(self) -> None:
        self.write(layout.POWER, 1, 5 << 2 | 0x20)
        self.halt()

    def __len__(self) -> int:
        return len(self._entries)

    def elf(self) -> bytes:
        code, _, handlers = asm.interpreter(self._virtual(FAILED), self._virtual(layout.PVPANIC))
        assert len(code) <= asm.PAGE_TABLES - asm.CODE
        segments = {asm.CODE: code, asm.TABLE: self._table(handlers)}
        if self._other is not None:
            segments[asm.OTHER_TABLE] = self._other._table(handlers)
        assert len(segments[asm.TABLE]) <= asm.OTHER_TABLE - asm.TABLE
        return asm.elf({**segments, asm.PAGE_TABLES: self._page_tables()})

    def _table(self, handlers: dict[Op, int]) -> bytes:
        return b"".join(
            struct.pack("<QQQ", handlers[op], address, value & (1 << 64) - 1)
            for op, address, value in self._entries
        )

    def _add(self, op: Op, address: int, value: int = 0) -> None:
        self._entries.append((op, address, value))

    def _virtual(self, gpa: int) -> int:
        """Where ``gpa`` is mapped: itself below 1 GiB, else in a window of its frame and the next."""
        if gpa < _IDENTITY - 8:
            return gpa
        frame, offset = divmod(gpa, _BIG_PAGE)
        window = self._frames.setdefault(frame, len(self._frames))
        return _IDENTITY + 2 * window * _BIG_PAGE + offset

    def _page_tables(self) -> bytes:
        """PML4, PDPT, then page directories: the identity, and one for each 256 windows."""
        frames = [page for frame in self._frames for page in (frame, frame + 1)]
        pages = [number * _BIG_PAGE for number in (*range(512), *frames)]
        directories = [pages[start : start + 512] for start in range(0, len(pages), 512)]
        assert len(directories) <= 512
        first = asm.PAGE_TABLES + 0x2000
        tables = [
            [asm.PAGE_TABLES + 0x1000 | _PRESENT_WRITABLE],
            [first + 0x1000 * number | _PRESENT_WRITABLE for number in range(len(directories))],
            *([page | _PRESENT_WRITABLE | _BIG for page in directory] for directory in directories),
        ]
        return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(4096, b"\0") for table in tables)
