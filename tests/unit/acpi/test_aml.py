"""AML terms against the bytes that iasl makes of the ASL quoted above them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.iasl import iasl
from nemu.acpi import aml

HEADER_SIZE = 36


class Golden(NamedTuple):
    asl: str
    term: bytes
    encoded: str  # what iasl 20200925 makes of it


GOLDEN = {
    "integers": Golden(
        "Name (ABCD, Package () {0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, Ones})",
        aml.name(
            "ABCD",
            aml.package(0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1),
        ),
        "084142434412220a00010a020aff0b00010bffff0c000001000cffffffff0e0000000001000000ff",
    ),
    "string": Golden(
        'Name (TEXT, "ACPI0013")', aml.name("TEXT", aml.string("ACPI0013")), "08544558540d414350493030313300"
    ),
    "eisaid": Golden(
        'Name (_HID, EisaId ("PNP0A08"))', aml.name("_HID", aml.eisaid("PNP0A08")), "085f4849440c41d00a08"
    ),
    "uuid": Golden(
        'Name (UUID, ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))',
        aml.name("UUID", aml.touuid("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
        "085555494411130a105b4ddb33f71f1c4096577441c03dd766",
    ),
    "paths": Golden(
        """Device (A) { Device (BB) { Device (CCC) { } } Device (DD) { Name (X, 1) } }
        Scope (A.BB.CCC) { Method (M, 0, Serialized) { Store (1, ^^^DD.X) } }""",
        aml.device("A", aml.device("BB", aml.device("CCC")), aml.device("DD", aml.name("X", 1)))
        + aml.scope("A.BB.CCC", aml.method("M", 0, aml.store(1, "^^^DD.X"))),
        "5b8220415f5f5f5b820c42425f5f5b82054343435f5b820b44445f5f08585f5f5f0110242f03415f5f5f42425f"
        "5f4343435f14144d5f5f5f0870015e5e5e2e44445f5f585f5f5f",
    ),
    "long-package": Golden(
        'Name (LONG, Package () {"' + "0123456789" * 7 + '"})',
        aml.name("LONG", aml.package(aml.string("0123456789" * 7))),
        "084c4f4e47124b04010d3031323334353637383930313233343536373839303132333435363738393031323334"
        "353637383930313233343536373839303132333435363738393031323334353637383900",
    ),
    "very-long-package": Golden(
        'Name (LONG, Package () {"' + "0123456789" * 18 + '", "' + "0123456789" * 19 + '"})',
        aml.name("LONG", aml.package(aml.string("0123456789" * 18), aml.string("0123456789" * 19))),
        "084c4f4e47124917020d3031323334353637383930313233343536373839303132333435363738393031323334"
        "353637383930313233343536373839303132333435363738393031323334353637383930313233343536373839"
        "303132333435363738393031323334353637383930313233343536373839303132333435363738393031323334"
        "353637383930313233343536373839303132333435363738393031323334353637383930313233343536373839"
        "30313233343536373839000d303132333435363738393031323334353637383930313233343536373839303132"
        "333435363738393031323334353637383930313233343536373839303132333435363738393031323334353637"
        "383930313233343536373839303132333435363738393031323334353637383930313233343536373839303132"
        "333435363738393031323334353637383930313233343536373839303132333435363738393031323334353637"
        "3839303132333435363738393031323334353637383900",
    ),
    "fields": Golden(
        """OperationRegion (REGS, SystemMemory, 0xFEA01000, 8)
        Field (REGS, DWordAcc, NoLock, Preserve) { PEND, 32, ACKN, 32 }""",
        aml.system_memory("REGS", 0xFEA0_1000, 8) + aml.dword_fields("REGS", "PEND", "ACKN"),
        "5b8052454753000c0010a0fe0a085b8110524547530350454e442041434b4e20",
    ),
    "statements": Golden(
        """Device (PWRB) { }
        Method (TEST, 2, Serialized)
        {
            While (Local0 = Arg0)
            {
                If (Local0 & 1) { Notify (PWRB, 0x80) }
                Else { Local0 |= 0x10 }
                If (Arg1 == 2) { Local7 = Arg0 }
                If (Arg1 != 2) { Return (Local7) }
            }
            CreateDWordField (Arg1, 4, CTRL)
            CTRL &= 0x3C
            Return (0)
        }""",
        aml.device("PWRB")
        + aml.method(
            "TEST",
            2,
            aml.while_(
                aml.store(aml.arg(0), aml.local(0)),
                aml.if_(aml.and_(aml.local(0), 1), aml.notify("PWRB", 0x80)),
                aml.else_(aml.or_(aml.local(0), 0x10, aml.local(0))),
                aml.if_(aml.equal(aml.arg(1), 2), aml.store(aml.arg(0), aml.local(7))),
                aml.if_(aml.not_equal(aml.arg(1), 2), aml.return_(aml.local(7))),
            ),
            aml.create_dword_field(aml.arg(1), 4, "CTRL"),
            aml.and_("CTRL", 0x3C, "CTRL"),
            aml.return_(0),
        ),
        "5b820550575242144704544553540aa22a706860a00c7b60010086505752420a80a1067d600a1060a00893690a"
        "02706867a0089293690a02a4678a690a044354524c7b4354524c0a3c4354524ca400",
    ),
    "resources": Golden(
        """Name (_CRS, ResourceTemplate ()
        {
            Memory32Fixed (ReadWrite, 0x80000000, 0x10000000)
            IO (Decode16, 0x3F8, 0x3F8, 1, 8)
            Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 17 }
        })""",
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.memory32fixed(0x8000_0000, 0x1000_0000), aml.io(0x3F8, 8), aml.interrupt(17)
            ),
        ),
        "085f43525311220a1f8609000100000080000000104701f803f80301088906000301110000007900",
    ),
    "windows": Golden(
        """Name (_CRS, ResourceTemplate ()
        {
            WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
            DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                0, 0x90000000, 0xFE9FFFFF, 0, 0x6EA00000)
            QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                0, 0x8000000000, 0xFFFFFFFFFF, 0, 0x8000000000)
        })""",
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.word_bus_number(0, 255),
                aml.dword_memory(0x9000_0000, 0xFEA0_0000),
                aml.qword_memory(1 << 39, 1 << 40),
            ),
        ),
        "085f435253114e050a5a880d00020c0000000000ff0000000001871700000c010000000000000090ffff9ffe00"
        "0000000000a06e8a2b00000c0100000000000000000000000080000000ffffffffff0000000000000000000000"
        "00000000800000007900",
    ),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_terms_encode_as_stored(case: Golden) -> None:
    assert case.term.hex() == case.encoded


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_iasl_makes_the_stored_bytes_of_the_quoted_asl(case: Golden, tmp_path: Path) -> None:
    no_device_identification = "3141"
    block = f'DefinitionBlock ("", "DSDT", 2, "NEMU", "NEMUVIRT", 1)\n{{\n{case.asl}\n}}\n'
    (tmp_path / "term.asl").write_text(block)
    iasl("-vw", no_device_identification, "term.asl", cwd=tmp_path)
    assert (tmp_path / "term.aml").read_bytes()[HEADER_SIZE:].hex() == case.encoded


@given(st.integers(0, 70_000))
def test_package_lengths_count_themselves_and_are_as_short_as_can_be(size: int) -> None:
    """Decoded by ACPI 6.5, 20.2.4, for sizes around every step."""
    term = aml.device("DEV0", bytes(size))[2:]
    more = term[0] >> 6
    length = term[0] & (0xF if more else 0x3F)
    for index in range(more):
        length |= term[1 + index] << 4 + 8 * index
    assert length == len(term)
    shortest = 0 if length - more < 0x40 else 1
    while shortest and length - more + shortest >= 1 << 4 + 8 * shortest:
        shortest += 1
    assert more == shortest


def test_a_segment_of_five_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="TOOLONG"):
        aml.path("TOOLONG")


def test_a_number_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
