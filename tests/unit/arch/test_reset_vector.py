"""The code at the BIOS entry, read by a disassembler."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from nemu.arch.x86_64 import layout, reset_vector

REGISTER, VALUE = layout.POWER + 2, 0x52


def disassemble(path: Path, start: int) -> list[str]:
    """Instructions from the segment offset ``start`` on, in AT&T's syntax without spaces to spare."""
    gpa, code = reset_vector.image(REGISTER, VALUE)
    path.write_bytes(code)
    base = gpa - (reset_vector.SEGMENT << 4)
    options = ["-D", "-b", "binary", "-m", "i8086", f"--adjust-vma={base:#x}", f"--start-address={start:#x}"]
    done = subprocess.run(["objdump", *options, str(path)], capture_output=True, text=True, check=True)
    lines = re.findall(r"^ +[0-9a-f]+:\t[0-9a-f ]+\t(.+)$", done.stdout, re.MULTILINE)
    return [" ".join(line.split()) for line in lines]


def test_it_ends_where_the_first_mebibyte_does() -> None:
    gpa, code = reset_vector.image(REGISTER, VALUE)
    assert gpa == layout.RESET_STUB
    assert gpa + len(code) == 1 << 20 == (reset_vector.SEGMENT << 4) + 0x10000


def test_the_entry_jumps_to_code_that_writes_the_reset_register(tmp_path: Path) -> None:
    entry = disassemble(tmp_path / "stub", reset_vector.ENTRY)
    target = re.fullmatch(r"jmp 0x([0-9a-f]+)", entry[0])
    assert target
    code = disassemble(tmp_path / "stub", int(target[1], 16))
    assert [line.split(" ")[0] for line in code[:9]] == [
        *("cli", "lgdtw", "mov", "or", "mov", "mov", "mov", "addr32", "hlt")
    ]
    assert code[7] == f"addr32 movb ${VALUE:#x},{REGISTER:#x}"


def test_the_descriptor_table_is_where_the_code_says(tmp_path: Path) -> None:
    gpa, image = reset_vector.image(REGISTER, VALUE)
    load = disassemble(tmp_path / "stub", gpa & 0xFFFF)[1]
    pointer = (int(load.rpartition(":")[2], 16) & 0xFFFF) - (gpa & 0xFFFF)  # shown with a sign
    limit = int.from_bytes(image[pointer : pointer + 2], "little")
    base = int.from_bytes(image[pointer + 2 : pointer + 6], "little") - gpa
    assert limit == 15
    flat = int.from_bytes(image[base + 8 : base + 16], "little")
    assert flat == 0x00CF_9300_0000_FFFF  # 4 GiB of writable data from 0
    assert image[base : base + 8] == bytes(8)
