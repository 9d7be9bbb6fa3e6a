"""Every way to start Debian's kernel: unpacked or not, by PVH or the 64-bit protocol, on both irqchips."""

from __future__ import annotations

import re

import pytest

from functional.guest import boot, initrd_with, script_text
from functional.rig import KERNEL, Rig

VMLINUX, NO_NOTE = "/tmp/vmlinux", "/tmp/vmlinux-no-note"
# /proc/sys/kernel/bootloader_type: what the kernel was told about its loader.
PVH, LINUX64 = "176", "255"  # 11 << 4, which the kernel's PVH entry sets itself; a loader without a number
LOW_RAM = {
    PVH: ["00000000-0009ffff usable", "000a0000-000dffff reserved"],  # Linux's PVH entry reserves that itself
    LINUX64: ["00000000-000dffff usable"],
}
FACTS = {
    "loader": "cat /proc/sys/kernel/bootloader_type",
    "ram": "dmesg | sed -n 's/.*BIOS-e820: .mem 0x00000000\\([0-9a-f]*\\)-0x00000000\\(.*\\)\\] /\\1-\\2 /p'",
    "log": "dmesg -r | grep -E '^<[0-3]>|Call Trace|WARNING:'",
    "interrupts": "grep Ged /proc/interrupts",
    "cmdline": "wc -c </proc/cmdline",
    "acpi": "ls /sys/firmware/acpi/tables | head -n 1",
}
KNOWN = re.compile(r"No config space access function found|unable to open an initial console")


def make_vmlinux(kernel: str, plain: str, without_note: str) -> int:
    """Runs inside: unpack an LZ4 bzImage by hand (Documentation/x86/boot.rst; LZ4's legacy frames)."""
    import struct

    import lz4.block

    with open(kernel, "rb") as file:
        image = file.read()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    packed = memoryview(image)[start : start + length]
    assert bytes(packed[:4]) == b"\x02\x21\x4c\x18"
    unpacked, position = bytearray(), 4
    while position < len(packed) - 4:
        (size,) = struct.unpack_from("<I", packed, position)
        unpacked += lz4.block.decompress(
            packed[position + 4 : position + 4 + size], uncompressed_size=8 << 20
        )
        position += 4 + size
    with open(plain, "wb") as out:
        out.write(unpacked)
    found = 0
    for size in (4, 8):
        note = struct.pack("<III4s", 4, size, 18, b"Xen")
        found += unpacked.count(note)
        unpacked = unpacked.replace(note, struct.pack("<III4s", 4, size, 0x4E4E, b"Xen"))
    with open(without_note, "wb") as out:
        out.write(unpacked)
    return found


@pytest.fixture(scope="module")
def kernels(host: Rig) -> Rig:
    """A host with the uncompressed kernel beside the bzImage, and one without its PVH note."""
    assert host.call_here(make_vmlinux, kernel=KERNEL, plain=VMLINUX, without_note=NO_NOTE) == 1
    return host


def check(facts: dict[str, str], loader: str) -> None:
    assert facts["loader"] == loader
    assert facts["acpi"] == "APIC"  # the RSDP was found
    assert facts["ram"].splitlines() == [
        *LOW_RAM[loader],
        "000e0000-000fffff ACPI data",
        "00100000-1fffffff usable",
        "80000000-8fffffff reserved",
    ]
    assert [line for line in facts["log"].splitlines() if not KNOWN.search(line)] == []


@pytest.mark.parametrize("irqchip", ["split", "kernel"])
def test_a_bzimage_starts_by_pvh_on_each_irqchip(host: Rig, irqchip: str) -> None:
    booted = boot(host, FACTS, "--irqchip", irqchip)
    assert booted.status == 0, booted.stderr
    check(booted.sections, PVH)
    assert re.search(
        r"\b16-edge +ACPI:Ged$" if irqchip == "kernel" else r"\b0-edge +ACPI:Ged$", booted["interrupts"]
    )
    registers = booted.report["exits"]["by_register"]
    assert any(name.startswith("ioapic ") for name in registers) == (irqchip == "split")


def test_an_uncompressed_vmlinux_starts_by_pvh_with_the_longest_command_line(kernels: Rig) -> None:
    words = f"{kernels.append} nemu.run=/t "
    booted = boot(kernels, FACTS, kernel=VMLINUX, append="x" * (2047 - len(words)))
    assert booted.status == 0, booted.stderr
    check(booted.sections, PVH)
    assert booted["cmdline"] == "2048"  # and the line end that /proc adds


def test_a_longer_command_line_is_refused(kernels: Rig) -> None:
    done = kernels.run_nemu(["run", "--kernel", VMLINUX, "--append", "x" * 2048])
    assert done.status == 2
    assert done.stderr == b"nemu: --append: is 2048 bytes long, this kernel takes at most 2047\n"


def test_a_vmlinux_without_a_pvh_note_starts_by_the_64_bit_protocol(kernels: Rig) -> None:
    booted = boot(kernels, FACTS, kernel=NO_NOTE)
    assert booted.status == 0, booted.stderr
    check(booted.sections, LINUX64)


def test_a_bzimage_that_nemu_cannot_unpack_starts_by_the_64_bit_protocol(host: Rig) -> None:
    host.put(b"raise ImportError('not installed')", "/tmp/hidden/lz4/__init__.py")
    initrd = initrd_with(host, script_text(FACTS))
    argv = ["python3.11", "-m", "nemu", "run", "--host", "native", "--kernel", KERNEL, "--initrd", initrd]
    done = host.run(
        [*argv, "--append", f"{host.append} nemu.run=/t"], env={"PYTHONPATH": "/tmp/hidden:/nemu/src"}
    )
    assert done.status == 0, done.stderr
    text = done.stdout.decode().replace("\r", "")
    facts = dict(re.findall(r"#<([\w-]+)>\n(.*?)\n*(?=\n#<)", text, re.DOTALL))
    check(facts, LINUX64)
