"""Register maps as data: a device matches on a register, never on offsets and widths.

A guest may access any bytes with any width from 1 to 8: part of a register, exactly one,
several, or the gap between two.  That is solved here, once:

* a partial write is merged with the register's present value, then stored whole;
* a wide write stores every register that it touches, lowest offset first;
* bytes that belong to no register read as all-ones and ignore writes.

``RegisterMap`` needs no storage of its own (the device loads and stores); ``RegisterPage``
keeps the values in a page that the guest reads without an exit ("reads are memory").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Generic, Literal, TypeAlias, TypeVar

R = TypeVar("R", bound=Enum)
Load: TypeAlias = Callable[[R], int]

_NATIVE_FORMAT: dict[int, Literal["B", "H", "I", "L"]] = {1: "B", 2: "H", 4: "I", 8: "L"}


class RegisterMap(Generic[R]):
    """``registers`` are (enum member, byte offset, width in bytes), which may not overlap.

    ``size`` is that of the whole block; ValueError for a map that contradicts itself.
    """

    __slots__ = ("_at", "_exact", "places", "size")

    def __init__(self, registers: Iterable[tuple[R, int, int]], size: int) -> None:
        self.size = size
        self.places: dict[R, tuple[int, int]] = {}
        self._exact: dict[tuple[int, int], R] = {}
        self._at: dict[int, tuple[R, int, int]] = {}  # byte offset -> the register there
        for place in registers:
            register, start, width = place
            covered = range(start, start + width)
            if register in self.places or width < 1 or start < 0 or covered.stop > size:
                raise ValueError(f"{register}: twice, empty, or outside the {size} bytes of the map")
            if any(offset in self._at for offset in covered):
                raise ValueError(f"{register}: overlaps another register")
            self.places[register] = (start, width)
            self._exact[start, width] = register
            self._at.update(dict.fromkeys(covered, place))

    def name(self, offset: int) -> str:
        """The register at ``offset`` in lower case, ``"gap"`` where there is none."""
        place = self._at.get(offset)
        return place[0].name.lower() if place else "gap"

    def touched(self, offset: int, width: int) -> list[tuple[R, int, int]]:
        """Each (register, offset, width) that has a byte in the access, lowest offset first."""
        found = (self._at.get(byte) for byte in range(offset, offset + width))
        return list(dict.fromkeys(place for place in found if place))

    def read(self, offset: int, width: int, load: Load[R]) -> int:
        """What the access reads, by ``load`` of each touched register, once and whole."""
        register = self._exact.get((offset, width))
        if register is not None:
            return load(register)
        value = ones(width)
        for register, start, size in self.touched(offset, width):
            shift = 8 * (start - offset)
            value &= ~_shifted(ones(size), shift)
            value |= _shifted(load(register), shift)
        return value & ones(width)

    def write(
        self, offset: int, width: int, value: int, store: Callable[[R, int], None], current: Load[R]
    ) -> None:
        """``store`` the new value of each touched register; ``current`` gives what to merge with."""
        register = self._exact.get((offset, width))
        if register is not None:
            store(register, value & ones(width))
            return
        for register, start, size in self.touched(offset, width):
            shift = 8 * (offset - start)
            mask = _shifted(ones(width), shift) & ones(size)
            kept = current(register) & ~mask if mask != ones(size) else 0
            store(register, kept | (_shifted(value, shift) & mask))


class RegisterPage(Generic[R]):
    """The registers of ``registers`` as they stand in ``view``, which is what the guest reads.

    ``page[register]`` is the present value; ``page[register] = value`` stores it with one
    machine store where the width is 1, 2, 4 or 8, so that no CPU ever reads half of it.
    At the start registers read 0 and everything else all-ones.
    """

    __slots__ = ("_cells", "registers", "view")

    def __init__(self, registers: RegisterMap[R], view: memoryview) -> None:
        self.registers = registers
        self.view = view
        view[:] = b"\xff" * len(view)
        self._cells: dict[R, memoryview] = {}
        for register, (start, width) in registers.places.items():
            self._cells[register] = view[start : start + width].cast(_NATIVE_FORMAT[width])
            self[register] = 0

    def __getitem__(self, register: R) -> int:
        return int(self._cells[register][0])

    def __setitem__(self, register: R, value: int) -> None:
        self._cells[register][0] = value

    def read(self, offset: int, width: int) -> int:
        """The bytes of the page, all-ones behind its end."""
        data = bytes(self.view[offset : offset + width])
        return int.from_bytes(data.ljust(width, b"\xff"), "little")

    def write(self, offset: int, width: int, value: int, store: Callable[[R, int], None]) -> None:
        """``store`` the new value of each touched register; the page changes only if the device says so."""
        self.registers.write(offset, width, value, store, self.__getitem__)

    def name(self, offset: int) -> str:
        """See ``RegisterMap.name``."""
        return self.registers.name(offset)


def ones(width: int) -> int:
    """All-ones of ``width`` bytes: what an access reads where nothing answers."""
    return (1 << 8 * width) - 1


def _shifted(value: int, bits: int) -> int:
    """``value`` shifted left by ``bits``, or right where ``bits`` is negative."""
    return value << bits if bits >= 0 else value >> -bits
