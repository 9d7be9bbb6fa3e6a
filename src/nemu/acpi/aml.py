"""ACPI machine language: one function a term, named after its ASL word, giving encoded bytes.

An operand is an ``int`` (a constant), a ``str`` (a name, relative or from ``\\``) or ``bytes``
(a term that is already encoded), so that nested calls read like the ASL they stand for::

    if_(and_(local(0), 1), notify("PWRB", 0x80))

Every term is as short as ``iasl`` would make it.  Source: ACPI 6.5, chapter 20 (AML) and
section 6.4 (resource data types).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

Operand: TypeAlias = int | str | bytes

_ONES = (1 << 64) - 1
_EXT = b"\x5b"
_NO_TARGET = b"\x00"


# --- constants and names (20.2.2, 20.2.3) ---------------------------------------------------


def integer(value: int) -> bytes:
    """The shortest encoding of an unsigned integer of up to 64 bits."""
    if value in (0, 1):
        return bytes((value,))
    if value == _ONES:
        return b"\xff"
    for prefix, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * width:
            return bytes((prefix,)) + value.to_bytes(width, "little")
    raise ValueError(f"{value:#x} has more than 64 bits")


def string(text: str) -> bytes:
    """An ASCII string."""
    return b"\x0d" + text.encode("ascii") + b"\x00"


def path(name: str) -> bytes:
    """A NameString: ``"PWRB"``, ``"\\\\_SB.PCI0"``, ``"^PEND"``; short segments are padded with ``_``."""
    relative = name.lstrip("\\^")
    prefix = name[: len(name) - len(relative)].encode("ascii")
    segments = [segment.ljust(4, "_").encode("ascii") for segment in relative.split(".") if segment]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{name}: a name segment has at most 4 characters")
    count = {0: b"\x00", 1: b"", 2: b"\x2e"}.get(len(segments), bytes((0x2F, len(segments))))
    return prefix + count + b"".join(segments)


def eisaid(text: str) -> bytes:
    """``"PNP0A08"`` as the compressed 32-bit identifier."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - 0x40)
    packed = letters << 16 | int(text[3:], 16)
    return integer(int.from_bytes(packed.to_bytes(4, "big"), "little"))


def touuid(text: str) -> bytes:
    """A UUID as a 16-byte buffer: the first three groups little-endian."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    return buffer(b"".join(group[::-1] for group in groups[:3]) + b"".join(groups[3:]))


def local(number: int) -> bytes:
    """``Local0`` to ``Local7``."""
    return bytes((0x60 + number,))


def arg(number: int) -> bytes:
    """``Arg0`` to ``Arg6``."""
    return bytes((0x68 + number,))


def _encoded(operand: Operand) -> bytes:
    if isinstance(operand, int):
        return integer(operand)
    return path(operand) if isinstance(operand, str) else operand


def _join(operands: Sequence[Operand]) -> bytes:
    return b"".join(map(_encoded, operands))


def _sized(opcode: bytes, content: bytes) -> bytes:
    """``opcode``, PkgLength (20.2.4, which counts itself) and ``content``."""
    if len(content) < 0x3F:
        return opcode + bytes((len(content) + 1,)) + content
    for more in (1, 2, 3):
        length = len(content) + 1 + more
        if length < 1 << 4 + 8 * more:
            lead = more << 6 | length & 0xF
            return opcode + bytes((lead,)) + (length >> 4).to_bytes(more, "little") + content
    raise ValueError(f"{len(content)} bytes do not fit one package")


# --- data objects and named objects (20.2.3, 20.2.5) ----------------------------------------


def buffer(data: bytes) -> bytes:
    """A buffer that is as long as ``data``."""
    return _sized(b"\x11", integer(len(data)) + data)


def package(*elements: Operand) -> bytes:
    """A package of at most 255 elements."""
    return _sized(b"\x12", bytes((len(elements),)) + _join(elements))


def name(target: str, value: Operand) -> bytes:
    return b"\x08" + path(target) + _encoded(value)


def scope(target: str, *terms: bytes) -> bytes:
    return _sized(b"\x10", path(target) + b"".join(terms))


def device(target: str, *terms: bytes) -> bytes:
    return _sized(_EXT + b"\x82", path(target) + b"".join(terms))


def method(target: str, arguments: int, *terms: bytes) -> bytes:
    """A Serialized method: one that makes named objects must be, and none of ours runs in parallel."""
    return _sized(b"\x14", path(target) + bytes((arguments | 0x08,)) + b"".join(terms))


def system_memory(target: str, gpa: Operand, length: int) -> bytes:
    """``OperationRegion (target, SystemMemory, gpa, length)``; inside a method ``gpa`` may be computed."""
    return _EXT + b"\x80" + path(target) + b"\x00" + _encoded(gpa) + integer(length)


def byte_fields(region: str, *names: str) -> bytes:
    """``Field (region, ByteAcc, NoLock, Preserve)`` of 8-bit fields, one behind the other."""
    return _fields(region, 1, 8, names)


def dword_fields(region: str, *names: str) -> bytes:
    """``Field (region, DWordAcc, NoLock, Preserve)`` of 32-bit fields, one behind the other."""
    return _fields(region, 3, 32, names)


def qword_fields(region: str, *names: str) -> bytes:
    """``Field (region, QWordAcc, NoLock, Preserve)`` of 64-bit fields, one behind the other."""
    return _fields(region, 4, 64, names)


def _fields(region: str, access: int, bits: int, names: Sequence[str]) -> bytes:
    lead = bytes((bits & 0xF | 0x40, bits >> 4)) if bits > 0x3F else bytes((bits,))
    content = b"".join(path(field) + lead for field in names)
    return _sized(_EXT + b"\x81", path(region) + bytes((access,)) + content)


def create_dword_field(source: Operand, offset: int, target: str) -> bytes:
    return b"\x8a" + _encoded(source) + integer(offset) + path(target)


def create_qword_field(source: Operand, offset: int, target: str) -> bytes:
    return b"\x8f" + _encoded(source) + integer(offset) + path(target)


# --- statements and operators (20.2.5.3, 20.2.5.4) ------------------------------------------


def store(source: Operand, target: Operand) -> bytes:
    return b"\x70" + _encoded(source) + _encoded(target)


def and_(left: Operand, right: Operand, target: Operand = _NO_TARGET) -> bytes:
    return b"\x7b" + _join((left, right, target))


def or_(left: Operand, right: Operand, target: Operand = _NO_TARGET) -> bytes:
    return b"\x7d" + _join((left, right, target))


def add(left: Operand, right: Operand, target: Operand = _NO_TARGET) -> bytes:
    return b"\x72" + _join((left, right, target))


def subtract(left: Operand, right: Operand, target: Operand = _NO_TARGET) -> bytes:
    return b"\x74" + _join((left, right, target))


def shift_right(value: Operand, bits: Operand, target: Operand = _NO_TARGET) -> bytes:
    return b"\x7a" + _join((value, bits, target))


def equal(left: Operand, right: Operand) -> bytes:
    return b"\x93" + _join((left, right))


def not_equal(left: Operand, right: Operand) -> bytes:
    return b"\x92" + equal(left, right)


def if_(condition: Operand, *terms: bytes) -> bytes:
    return _sized(b"\xa0", _encoded(condition) + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    return _sized(b"\xa1", b"".join(terms))


def while_(condition: Operand, *terms: bytes) -> bytes:
    return _sized(b"\xa2", _encoded(condition) + b"".join(terms))


def notify(target: str, value: Operand) -> bytes:
    return b"\x86" + path(target) + _encoded(value)


def call(target: str, *arguments: Operand) -> bytes:
    """Invoke the method ``target``, which must take just as many arguments."""
    return path(target) + _join(arguments)


def return_(value: Operand) -> bytes:
    return b"\xa4" + _encoded(value)


# --- resources (6.4) ------------------------------------------------------------------------

_CONSUMER = 0x01
_FIXED = 0x0C  # MinFixed, MaxFixed: the window cannot move
_READ_WRITE = 0x01


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of ``descriptors`` and the end tag (its checksum 0: not checked)."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def memory32fixed(gpa: int, length: int) -> bytes:
    """``Memory32Fixed (ReadWrite, gpa, length)``: memory that the device itself uses."""
    return struct.pack("<BHBII", 0x86, 9, _READ_WRITE, gpa, length)


def io(port: int, length: int) -> bytes:
    """``IO (Decode16, port, port, 1, length)``."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def interrupt(gsi: int) -> bytes:
    """``Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }``."""
    edge = 0x02
    return struct.pack("<BHBBI", 0x89, 6, _CONSUMER | edge, 1, gsi)


def word_bus_number(first: int, last: int) -> bytes:
    """The bus numbers that a host bridge passes on (``ResourceProducer``)."""
    return struct.pack("<BHBBB5H", 0x88, 13, 2, _FIXED, 0, 0, first, last, 0, last - first + 1)


def dword_memory(start: int, end: int) -> bytes:
    """The 32-bit window [start, end) that a host bridge passes on, not cacheable, read-write."""
    return struct.pack("<BHBBB5I", 0x87, 23, 0, _FIXED, _READ_WRITE, 0, start, end - 1, 0, end - start)


def qword_memory(start: int, end: int) -> bytes:
    """The 64-bit window [start, end) that a host bridge passes on, not cacheable, read-write."""
    return struct.pack("<BHBBB5Q", 0x8A, 43, 0, _FIXED, _READ_WRITE, 0, start, end - 1, 0, end - start)


def qword_cacheable_memory(start: int, end: int) -> bytes:
    """``QWordMemory (ResourceConsumer, , MinFixed, MaxFixed, Cacheable, ReadWrite)``: RAM at [start, end)."""
    cacheable = 1 << 1
    flags = _READ_WRITE | cacheable
    return struct.pack("<BHBBB5Q", 0x8A, 43, 0, _FIXED | _CONSUMER, flags, 0, start, end - 1, 0, end - start)
