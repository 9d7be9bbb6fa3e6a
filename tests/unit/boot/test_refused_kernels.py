"""What the user can get wrong: one line says so, from ``check`` where that is cheap, else from ``load``."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nemu.boot.loader import check, load
from nemu.errors import ConfigError
from nemu.memory import GuestRam
from unit.boot.kernels import LZ4_MAGIC, MIB, PACKERS, TEXT_GPA, Elf, bzimage, with_size

RAM_SIZE = 64 * MIB
Image = Callable[..., str]


def refusal(kernel: str, initrd: str = "", cmdline: str = "", memory: int = RAM_SIZE) -> str:
    with pytest.raises(ConfigError) as caught:
        check(kernel, initrd, cmdline, memory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load_refusal(ram: GuestRam, kernel: str) -> str:
    check(kernel, "", "", RAM_SIZE)
    with pytest.raises(ConfigError) as caught:
        load(ram, kernel=kernel, initrd="", cmdline="", rsdp=0xE0000)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_that_are_no_kernel_file(tmp_path: Path, image: Image) -> None:
    missing = str(tmp_path / "missing")
    assert refusal(missing) == f"--kernel {missing}: No such file or directory"
    assert refusal(str(tmp_path)) == f"--kernel {tmp_path}: is a directory"
    assert refusal("/dev/zero").endswith("is not a regular file")
    assert refusal(image(b"")).endswith("is empty")
    os.mkfifo(tmp_path / "fifo")
    assert refusal(str(tmp_path / "fifo")).endswith("is not a regular file")
    assert "null byte" in refusal("a\0b")
    assert refusal("a\nb") == "--kernel 'a\\nb': No such file or directory"


def test_paths_that_are_no_initrd(tmp_path: Path, image: Image) -> None:
    kernel = image(Elf().build())
    missing = str(tmp_path / "missing")
    assert refusal(kernel, missing) == f"--initrd {missing}: No such file or directory"
    assert refusal(kernel, str(tmp_path)) == f"--initrd {tmp_path}: is a directory"
    assert refusal(kernel, image(b"", "empty")).endswith("is empty")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"#!/bin/sh\n" * 100, "is not a kernel: neither a bzImage nor an ELF file", id="text"),
        pytest.param(b"MZ", "is not a kernel", id="two-bytes"),
        pytest.param(b"\x7fELF", "is truncated: it ends within its ELF header", id="elf-magic"),
        pytest.param(bzimage(b"")[:0x250], "is truncated: it ends within its header", id="bzimage-header"),
        pytest.param(bzimage(bytes(4096))[:-96], "is truncated: 96 bytes are missing", id="bzimage-end"),
        pytest.param(Elf(tail=b"").build()[:-1], "is truncated", id="elf-end"),
        pytest.param(bzimage(b"", xloadflags=0), "is a 32-bit kernel", id="bzimage-32"),
        pytest.param(bzimage(b"", version=0x20B), "is a 32-bit kernel, or older", id="bzimage-old"),
        pytest.param(Elf(elf_class=1).build(), "is a 32-bit kernel", id="elf-32"),
        pytest.param(Elf(machine=183).build(), "is a kernel for another architecture", id="elf-aarch64"),
        pytest.param(Elf(note=None, virtual=0x400000).build(), "without a PVH note", id="program"),
        pytest.param(bzimage(b"x", payload_length=1 << 31), "payload does not lie inside", id="payload"),
        pytest.param(
            Elf(text_gpa=0x1000, entry=0x1000, note=None).build(), "wants to be loaded at 0x1000", id="low"
        ),
        pytest.param(Elf(bss=1 << 40).build(), "does not fit below 2 GiB", id="huge-bss"),
        pytest.param(Elf(bss=100 * MIB).build(), "needs --memory 119M at least, not 64M", id="large"),
        pytest.param(Elf(data_gpa=TEXT_GPA + 64).build(), "its segments overlap", id="overlap"),
    ],
)
def test_images_that_check_refuses(image: Image, data: bytes, expected: str) -> None:
    path = image(data)
    message = refusal(path)
    assert message.startswith(f"--kernel {path}: ")
    assert expected in message


def test_kernel_module_is_no_kernel(image: Image) -> None:
    module = bytearray(Elf().build())
    struct.pack_into("<HHH", module, 52, 64, 0, 0)  # no program headers
    assert refusal(image(bytes(module))).endswith("an ELF file without anything to load")


def test_notes_that_no_file_offset_reaches(image: Image) -> None:
    kernel = bytearray(Elf(virtual=0x400000).build())
    struct.pack_into("<Q", kernel, 64 + 2 * 56 + 8, 0xFFFF_0000_0000_0000)
    assert "without a PVH note" in refusal(image(bytes(kernel)))


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("a" * 2048, "is 2048 bytes long, this kernel takes at most 2047"),
        ("ä" * 1024, "is 2048 bytes long"),
        ("a\nb", "must be one line without NUL bytes"),
        ("a\0b", "must be one line without NUL bytes"),
        ("\ud800", "cannot be encoded"),
    ],
)
def test_command_lines_that_no_kernel_takes(image: Image, cmdline: str, expected: str) -> None:
    message = refusal(image(Elf().build()), cmdline=cmdline)
    assert message.startswith("--append: ")
    assert expected in message


def test_command_line_limit_is_the_kernels_own(image: Image) -> None:
    check(image(Elf().build()), "", "a" * 2047, RAM_SIZE)
    small = image(bzimage(b"", cmdline_size=255))
    check(small, "", "a" * 255, RAM_SIZE)
    assert refusal(small, cmdline="a" * 256).endswith("takes at most 255")


def test_files_larger_than_memory(tmp_path: Path, image: Image) -> None:
    kernel = image(Elf().build())
    sparse = tmp_path / "initrd"
    with open(sparse, "wb") as file:
        file.truncate(RAM_SIZE)
    assert refusal(kernel, str(sparse)).endswith("is too large: 64 MiB, with --memory 64M")
    os.truncate(sparse, RAM_SIZE - MIB)
    check(kernel, "", "", RAM_SIZE)
    large = image(bzimage(bytes(8 * MIB)), "large")
    assert refusal(large, str(sparse)).endswith("does not fit beside the kernel into --memory 64M")
    assert "is too large" in refusal(large, memory=8 * MIB)


def test_debugging_information_takes_no_memory(ram: GuestRam, image: Image) -> None:
    kernel = image(Elf().build())
    os.truncate(kernel, 2 * RAM_SIZE)
    check(kernel, image(bytes(MIB), "initrd"), "", RAM_SIZE)
    assert load(ram, kernel=kernel, initrd="", cmdline="", rsdp=0xE0000).protocol == "pvh"


@pytest.mark.parametrize("packer", PACKERS)
def test_corrupt_payload(ram: GuestRam, image: Image, packer: str) -> None:
    packed = bytearray(PACKERS[packer](Elf(text=os.urandom(50_000)).build()))
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    assert "is corrupt" in load_refusal(ram, image(bzimage(bytes(packed))))


@pytest.mark.parametrize("packer", PACKERS)
def test_payload_cut_short(ram: GuestRam, image: Image, packer: str) -> None:
    plain = Elf(text=os.urandom(50_000)).build()
    packed = PACKERS[packer](plain)[:-2000]
    assert "is corrupt" in load_refusal(ram, image(bzimage(with_size(packed, plain))))


@pytest.mark.parametrize("packer", PACKERS)
def test_decompression_bomb_is_cut_off(ram: GuestRam, image: Image, packer: str) -> None:
    """It claims 100 kB, and holds 40 MiB of zeroes behind its segments."""
    bomb = PACKERS[packer](Elf(tail=bytes(40 * MIB)).build())[:-4] + struct.pack("<I", 100_000)
    assert "more than the 100000 bytes" in load_refusal(ram, image(bzimage(bomb)))


def test_false_sizes_in_a_payload(ram: GuestRam, image: Image) -> None:
    huge_block = LZ4_MAGIC + struct.pack("<I", 0xFFFF_FFF0) + bytes(100)
    assert "a block of 4294967280 bytes" in load_refusal(ram, image(bzimage(with_size(huge_block, b"x"))))
    huge = LZ4_MAGIC + bytes(100) + struct.pack("<I", 0xFFFF_FFF0)
    assert "unpacked size of 4294967280" in load_refusal(ram, image(bzimage(huge)))
    # Known properties, a dictionary of 4 GiB.
    lzma_header = b"\x5d\x00\x00\x00\xf0" + b"\xff" * 8 + bytes(50)
    assert "is corrupt" in load_refusal(ram, image(bzimage(with_size(lzma_header, b"x" * 5000))))


def test_payload_larger_than_memory(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(PACKERS["gzip"](Elf(bss=100 * MIB).build())))
    assert load_refusal(ram, kernel).endswith("needs --memory 119M at least, not 64M")


def test_bzimage_larger_than_memory(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(b"", init_size=100 * MIB))
    assert load_refusal(ram, kernel).endswith("needs --memory 116M at least, not 64M")


def test_32_bit_payload(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(PACKERS["xz"](Elf(elf_class=1).build())))
    assert "is a 32-bit kernel" in load_refusal(ram, kernel)


def test_a_failed_load_leaves_no_descriptor(ram: GuestRam, image: Image) -> None:
    kernel = image(bzimage(PACKERS["gzip"](Elf(bss=100 * MIB).build())))
    before = len(os.listdir("/proc/self/fd"))
    load_refusal(ram, kernel)
    assert len(os.listdir("/proc/self/fd")) == before
