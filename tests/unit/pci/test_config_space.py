"""Configuration space as a guest sees it: what is there, and what a write may change."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from nemu.pci import config
from nemu.pci.config import SIZE, ConfigSpace


def space() -> ConfigSpace:
    return ConfigSpace(
        memoryview(bytearray(SIZE)), vendor=0x1AF4, device=0x1042, class_code=0x018000, revision=1
    )


def capabilities(view: memoryview) -> Iterator[tuple[int, int]]:
    """(id, offset), walked as PCI 3.0, 6.7 tells a driver to."""
    status, pointer = view[6], view[0x34]
    assert status & 0x10
    seen: set[int] = set()
    while pointer:
        assert pointer not in seen
        assert pointer >= 0x40
        assert pointer % 4 == 0
        seen.add(pointer)
        yield view[pointer], pointer
        pointer = view[pointer + 1]


def test_the_header_is_type_0_without_pin_rom_or_interrupt() -> None:
    view = space().view
    vendor, device, command, status = struct.unpack_from("<HHHH", view)
    assert (vendor, device, command, status) == (0x1AF4, 0x1042, 0, 0)
    assert struct.unpack_from("<I", view, 8)[0] == 0x01800001
    assert struct.unpack_from("<HH", view, 0x2C) == (0x1AF4, 0x1042)
    assert view[0x0E] == 0
    assert view[0x30:0x34] == bytes(4)
    assert view[0x3D] == 0


def test_capabilities_are_a_list_in_the_order_they_were_added() -> None:
    one = space()
    offsets = [one.add_capability(9, bytes(14), "a"), one.add_capability(9, bytes(17), "b")]
    offsets.append(one.add_capability(0x11, struct.pack("<HII", 2, 0x1000, 0x1800), "msix"))
    assert list(capabilities(one.view)) == [(9, offsets[0]), (9, offsets[1]), (0x11, offsets[2])]
    assert struct.unpack_from("<HII", one.view, offsets[2] + 2) == (2, 0x1000, 0x1800)


def test_command_has_only_the_bits_that_mean_something() -> None:
    one = space()
    one.write(config.COMMAND, 2, 0xFFFF)
    assert one.u16(config.COMMAND) == 0x0406
    one.write(config.COMMAND, 2, 0)
    assert one.u16(config.COMMAND) == 0


def test_registers_that_drivers_use_as_a_note_pad_hold_what_was_written() -> None:
    one = space()
    one.write(0x0C, 1, 0x10)
    one.write(0x3C, 1, 0x0B)
    assert (one.view[0x0C], one.view[0x3C]) == (0x10, 0x0B)


@given(
    st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=30
    )
)
def test_only_writable_bits_ever_change(writes: list[tuple[int, int, int]]) -> None:
    one = space()
    one.add_capability(9, b"\xa5" * 14, "a")
    one.allow(0x10, (0xFFFF_FFFF_FFFF_C000).to_bytes(8, "little"))
    mask = bytearray(SIZE)
    mask[4:6], mask[0x0C], mask[0x3C] = b"\x06\x04", 0xFF, 0xFF
    mask[0x10:0x18] = b"\x00\xc0\xff\xff\xff\xff\xff\xff"
    before = bytes(one.view)
    expected = bytearray(before)
    for offset, width, value in writes:
        one.write(offset, width, value & (1 << 8 * width) - 1)
        for index, byte in enumerate(value.to_bytes(8, "little")[:width], offset):
            if index < SIZE:
                expected[index] = expected[index] & ~mask[index] | byte & mask[index]
    assert one.view == expected
    assert all(
        (old ^ new) & ~allowed & 0xFF == 0 for old, new, allowed in zip(before, one.view, mask, strict=True)
    )


def test_every_offset_has_a_name() -> None:
    one = space()
    offset = one.add_capability(9, bytes(14), "virtio_cap1")
    assert one.register_name(0x04) == "command"
    assert one.register_name(0x05) == "command"
    assert one.register_name(0x14) == "bar1"
    assert one.register_name(offset + 3) == "virtio_cap1+0x3"
    assert one.register_name(0x100) == "0x100"
    assert all(one.register_name(at) for at in range(SIZE))
