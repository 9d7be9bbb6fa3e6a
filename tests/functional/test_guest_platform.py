"""What Debian's kernel finds on the machine: its log, ACPI tables, PCI functions, and no legacy hardware."""

from __future__ import annotations

import base64
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from functional.guest import Boot, boot
from functional.rig import Rig
from nemu.arch.x86_64 import layout

CPUS = 2
FIRST_DISK, RNG = "0000:00:02.0", "0000:00:06.0"

# Linux says these on any machine like this one; each with the reason why it is none of our faults.
HARMLESS = {
    r"PCI: Fatal: No config space access function found": "before ACPI is up; ECAM is used from then on",
    r"Warning: unable to open an initial console\.": "virtio_console is a module of this kernel",
    r"pmd_set_huge: Cannot satisfy .* with a huge-page mapping due to MTRR override": "no MTRR is set",
}
TROUBLE = re.compile(
    r"Call Trace|WARNING:|BUG:|Firmware Bug|ACPI (BIOS )?(Error|Warning|Exception)|ACPI: .*(rror|nvalid)"
    r"|pci .*(can't|failed|no space|not claimed|invalid|conflict)|irq \d+: nobody cared|Oops|soft lockup"
)
PCI_FACTS = (
    "for d in /sys/bus/pci/devices/*; do "
    "echo ${d##*/} $(cat $d/vendor $d/device $d/class $d/revision $d/irq) "
    "$(basename $(readlink $d/driver)) $(ls $d/msi_irqs | wc -l) $(head -n 1 $d/resource) "
    "$(od -An -v -tx1 -N256 $d/config | tr -d ' \\n'); done 2>/dev/null"
)
# Moves the BAR of a disk without a driver while memory decoding is on, then lets Linux find another place.
MOVE_BAR = f"""
d=/sys/bus/pci/devices/{FIRST_DISK}
sum() {{ dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | md5sum; }}
poke() {{ printf "$2" | dd of=$d/config bs=1 seek=$1 conv=notrunc 2>/dev/null; }}
read old rest <$d/resource
echo before $(sum)
echo {FIRST_DISK} >$d/driver/unbind
poke 4 '\\x02\\x00'
echo old-place $(devmem $((old + 16)) 32)
poke 20 '\\xc0\\x00\\x00\\x00'
poke 16 '\\x00\\x00\\x00\\xb0'
echo new-place $(devmem 0xc0b0000010 32)
echo left-place $(devmem $((old + 16)) 32)
echo 1 >$d/remove
echo 20@{FIRST_DISK} >/sys/bus/pci/resource_alignment
echo 1 >/sys/bus/pci/rescan
for i in 1 2 3 4 5 6 7 8 9; do [ -e /dev/vda ] && break; sleep 0.1; done
read new rest <$d/resource
echo found $old $new
echo after $(sum)
"""


@pytest.fixture(scope="module")
def machine(host: Rig) -> Boot:
    """One boot with a device of every kind."""
    prepare = (
        "dd if=/dev/urandom of=/tmp/a.img bs=64k count=16 2>/dev/null; truncate -s 1M /tmp/b.img;"
        "/bin/ip tuntap add tap0 mode tap && /bin/ip link set tap0 up"
    )
    assert host.run(["sh", "-c", prepare]).status == 0
    return boot(
        host,
        {
            "log": "dmesg -rc",
            "pci": PCI_FACTS,
            "acpi": "cd /sys/firmware/acpi/tables; for t in [A-Z]*; do echo $t $(base64 -w 0 $t); done",
            "ioports": "cat /proc/ioports",
            "interrupts": "cat /proc/interrupts",
            "iomem": "cat /proc/iomem",
            "legacy": "ls -d /sys/class/rtc/rtc* /sys/bus/serio/devices/* /sys/bus/isa/devices/* "
            "/sys/bus/pnp/devices/* /sys/firmware/dmi 2>/dev/null",
            "clock": "cd /sys/devices/system; cat clocksource/clocksource0/[ac]*_clocksource "
            "clockevents/clockevent0/current_device",
            "hwrng": "cat /sys/class/misc/hw_random/rng_current; head -c 65536 /dev/hwrng >/tmp/r;"
            "wc -c </tmp/r; gzip -c /tmp/r | wc -c",
            "move": MOVE_BAR,
            "rescan": f"cd /sys/bus/pci; echo 1 >devices/{RNG}/remove; ls devices | wc -l; echo 1 >rescan;"
            "ls devices | wc -l; sleep 0.2; head -c 4096 /dev/hwrng | wc -c",
            "late-log": "dmesg -r",
        },
        *("--cpus", str(CPUS), "--disk", "/tmp/a.img", "--disk", "/tmp/b.img,readonly=on"),
        *("--net", "tap=tap0", "--net", "user"),
    )


def test_it_boots_and_powers_off_with_every_device(machine: Boot) -> None:
    assert machine.status == 0, machine.stderr + machine.console[-2000:]
    assert machine.stderr == ""
    assert machine.report["outcome"] == "power_off"


@pytest.mark.parametrize("log", ["log", "late-log"])
def test_the_kernel_log_has_no_complaint_that_is_ours(machine: Boot, log: str) -> None:
    lines = re.findall(r"^<(\d+)>\[[ .\d]+\] (.*)$", machine[log], re.MULTILINE)
    assert len(lines) > (150 if log == "log" else 5)
    bad = [text for level, text in lines if int(level) & 7 <= 4 or TROUBLE.search(text)]
    assert [text for text in bad if not any(re.fullmatch(known, text) for known in HARMLESS)] == []


def _tables(machine: Boot) -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in map(str.split, machine["acpi"].splitlines())}


def test_acpi_tables_have_right_checksums_and_lengths(machine: Boot) -> None:
    tables = _tables(machine)
    assert {"APIC", "DSDT", "FACP", "MCFG"} <= set(tables)
    assert not {"HPET", "BOOT", "SPCR", "UEFI", "WDRT"} & set(tables)
    for name, data in tables.items():
        assert data[:4] == name.encode()
        assert int.from_bytes(data[4:8], "little") == len(data)
        assert sum(data) % 256 == 0


def test_acpi_tables_are_disassembled_and_recompiled_without_a_remark(machine: Boot, tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    assert iasl, "install acpica-tools"
    for name, data in _tables(machine).items():
        (tmp_path / f"{name}.dat").write_bytes(data)
        out = subprocess.run(
            [iasl, "-d", f"{name}.dat"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert not re.search(r"error|warning|invalid|incorrect", out.stdout + out.stderr, re.IGNORECASE)
        out = subprocess.run(
            [iasl, "-p", f"{name}2", f"{name}.dsl"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        text = out.stdout + out.stderr
        assert out.returncode == 0, text
        if name == "DSDT":
            assert "0 Errors, 0 Warnings, 0 Remarks" in text
        assert (tmp_path / f"{name}2.aml").read_bytes()[36:] == data[36:]


def test_madt_lists_the_cpus_and_no_8259(machine: Boot) -> None:
    madt = _tables(machine)["APIC"]
    (flags,) = struct.unpack_from("<I", madt, 40)
    assert flags & 1 == 0  # PCAT_COMPAT
    apic_ids, offset = [], 44
    while offset < len(madt):
        if madt[offset] == 0 and madt[offset + 4] & 1:
            apic_ids.append(madt[offset + 3])
        offset += madt[offset + 1]
    assert apic_ids == list(range(CPUS))


def test_fadt_says_hardware_reduced(machine: Boot) -> None:
    fadt = _tables(machine)["FACP"]
    (boot_arch,) = struct.unpack_from("<H", fadt, 109)
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags >> 20 & 1  # HW_REDUCED_ACPI
    assert flags >> 10 & 1  # RESET_REG_SUP
    assert boot_arch & 0b11 == 0  # no legacy devices, no 8042
    assert boot_arch & 1 << 2  # no VGA
    assert boot_arch & 1 << 5  # no CMOS RTC
    assert fadt[56:88] == bytes(32)  # no PM1, PM2, PM timer or GPE block


def test_no_legacy_hardware_is_found(machine: Boot) -> None:
    assert [line for line in machine["legacy"].splitlines() if "/pnp/" not in line] == []
    assert [line.split("/")[-1] for line in machine["legacy"].splitlines()] == ["00:00"]  # ECAM's reservation
    # What Linux reserves on any PC without looking, and nothing else.
    assert set(re.findall(r": (.*)$", machine["ioports"], re.MULTILINE)) <= {
        *("dma1", "dma2", "dma page reg", "pic1", "pic2", "timer0", "timer1", "keyboard", "fpu")
    }
    assert not re.search(
        r"XT-PIC|timer$|i8042|rtc|acpi$|hpet|floppy|ide|serial", machine["interrupts"], re.MULTILINE
    )
    assert "HPET" not in machine["iomem"]
    assert "Video" not in machine["iomem"]
    assert machine["clock"].split() == ["kvm-clock", "kvm-clock", "lapic-deadline"]


def test_no_port_is_decoded(machine: Boot) -> None:
    unknown = re.findall(r"unknown (0x[0-9a-f]+) \w+", " ".join(machine.report["exits"]["by_register"]))
    left_place = dict(line.split(maxsplit=1) for line in machine["move"].splitlines())["found"].split()[0]
    assert {place for place in unknown if int(place, 16) > 0xFFFF} == {f"{int(left_place, 16) + 16:#x}"}
    # One for the read of the place that the BAR has left.
    assert machine.report["unknown_accesses"] == machine.report["exits"]["by_kind"]["io"] + 1


def test_interrupts_of_devices_are_msi_x(machine: Boot) -> None:
    kinds = re.findall(r"^ *\d+: [\d ]+ (\S+) .*?(\S+)$", machine["interrupts"], re.MULTILINE)
    assert {name for kind, name in kinds if kind != "PCI-MSI"} == {"ACPI:Ged"}
    # Console, two disks, two network cards: the configuration and two queues; entropy has one queue.
    assert len([name for kind, name in kinds if kind == "PCI-MSI"]) == 5 * 3 + 2


def test_pci_functions_are_the_right_ones(machine: Boot) -> None:
    found = [line.split() for line in machine["pci"].splitlines()]
    assert [(f[0][5:], f[1], f[2], f[3]) for f in found] == [
        ("00:00.0", "0x8086", "0x0d57", "0x060000"),
        ("00:01.0", "0x1af4", "0x1043", "0x078000"),
        ("00:02.0", "0x1af4", "0x1042", "0x018000"),
        ("00:03.0", "0x1af4", "0x1042", "0x018000"),
        ("00:04.0", "0x1af4", "0x1041", "0x020000"),
        ("00:05.0", "0x1af4", "0x1041", "0x020000"),
        (RNG[5:], "0x1af4", "0x1044", "0xff0000"),
    ]
    for fields in found[1:]:
        config = bytes.fromhex(fields[-1])
        assert int(fields[4], 16) >= 1  # revision: not transitional (virtio 1.2, 4.1.2)
        assert "virtio-pci" in fields
        assert config[0x3D] == 0  # no interrupt pin


def _capabilities(config: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    offset = config[0x34]
    while offset:
        assert offset not in [where for _, where in found]
        found.append((config[offset], offset))
        offset = config[offset + 1]
    return found


def test_bars_lie_in_the_windows_and_do_not_overlap(machine: Boot) -> None:
    windows = [
        (int(a, 16), int(b, 16) + 1)
        for a, b in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : PCI Bus 0000:00$", machine["iomem"], re.MULTILINE)
    ]
    assert (layout.PCI32_START, layout.PCI32_END) in windows
    assert len(windows) == 2
    bars = []
    for line in machine["pci"].splitlines()[1:]:
        start, end = (int(word, 16) for word in re.findall(r"0x[0-9a-f]{16}", line)[:2])
        assert any(low <= start < end < high for low, high in windows)
        bars.append((start, end))
    assert all(a[1] < b[0] for a, b in zip(sorted(bars), sorted(bars)[1:], strict=False))


def test_virtio_capabilities_are_complete_and_msi_x_is_on(machine: Boot) -> None:
    for line in machine["pci"].splitlines()[1:]:
        config = bytes.fromhex(line.split()[-1])
        capabilities = _capabilities(config)
        kinds = {config[where + 3] for kind, where in capabilities if kind == 0x09}
        assert {1, 2, 3, 5} <= kinds  # common, notify, ISR, PCI access (virtio 1.2, 4.1.4)
        (msix,) = [where for kind, where in capabilities if kind == 0x11]
        assert config[msix + 3] & 0x80


def test_entropy_comes_from_the_virtio_device(machine: Boot) -> None:
    name, size, compressed = machine["hwrng"].split()
    assert name.startswith("virtio_rng")
    assert size == "65536"
    assert int(compressed) > 65536  # it is not compressible


def test_a_bar_moves_at_run_time_and_the_disk_works_there(machine: Boot) -> None:
    facts = dict(line.split(maxsplit=1) for line in machine["move"].splitlines() if " " in line)
    assert facts["old-place"] == "0x0002FFFF"  # two queues, no vector for configuration changes
    assert facts["new-place"] == facts["old-place"]  # the same register
    assert facts["left-place"] == "0xFFFFFFFF"
    old, new = facts["found"].split()
    assert int(new, 16) % (1 << 20) == 0 != int(old, 16) % (1 << 20)
    assert facts["after"] == facts["before"]


def test_a_removed_function_comes_back_by_a_rescan(machine: Boot) -> None:
    before, after, size = machine["rescan"].split()
    assert (int(after) - int(before), size) == (1, "4096")


def test_the_report_lists_the_devices_where_the_guest_has_them(machine: Boot) -> None:
    places = {device["place"] for device in machine.report["devices"]}
    assert {line.split()[0] for line in machine["pci"].splitlines()[1:]} <= places
