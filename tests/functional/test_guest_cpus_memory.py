"""CPUs and memory as Debian's kernel sees them."""

from __future__ import annotations

import re

import pytest

from functional.guest import Boot, boot
from functional.rig import Rig
from nemu.arch.x86_64 import layout

MIB, GIB = 1 << 20, 1 << 30
CPU_FACTS = {
    "online": "cat /sys/devices/system/cpu/online /sys/devices/system/cpu/present",
    "nproc": "nproc",
    "topology": "for c in /sys/devices/system/cpu/cpu[0-9]*; do cd $c/topology; "
    "echo ${c##*/cpu} $(cat physical_package_id core_id thread_siblings_list package_cpus_list); done",
    "apic-ids": "grep -E '^(apicid|initial apicid|cpu cores|siblings)' /proc/cpuinfo | tr -d '\\t'",
    # Every CPU runs a process of its own and has had timer interrupts.
    "run": "for c in $(seq 0 $(($(nproc) - 1))); do taskset -c $c cut -d' ' -f39 /proc/self/stat; done",
    "timers": "grep LOC: /proc/interrupts",
    "log": "dmesg | grep -iE 'smpboot|Call Trace|APIC id|mismatch|bug'",
}
MEMORY_FACTS = {
    "total": "head -n 1 /proc/meminfo",
    "iomem": "grep -E 'System RAM|Kernel code' /proc/iomem",
    "log": "dmesg | grep -E 'e820.*usable|Call Trace|Out of memory'",
}


def _ram(facts: Boot) -> list[tuple[int, int]]:
    """(start, end) of each range of RAM above 1 MiB that the guest's kernel uses."""
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", facts["iomem"], re.MULTILINE)
    ranges = [(int(start, 16), int(end, 16) + 1) for start, end in found]
    return [pair for pair in ranges if pair[0] >= MIB]


def _total(facts: Boot) -> int:
    return int(facts["total"].split()[1]) * 1024


@pytest.mark.parametrize("cpus", [1, 4, 16])
def test_all_cpus_come_up_as_cores_of_one_package(host: Rig, cpus: int) -> None:
    facts = boot(host, CPU_FACTS, "--cpus", str(cpus), timeout=200)
    assert facts.status == 0, facts.stderr + facts.console[-2000:]
    everyone = f"0-{cpus - 1}" if cpus > 1 else "0"
    assert facts["nproc"] == str(cpus)
    assert facts["online"].split() == [everyone, everyone]
    topology = sorted(facts["topology"].splitlines(), key=lambda line: int(line.split()[0]))
    assert topology == [f"{n} 0 {n} {n} {everyone}" for n in range(cpus)]
    cpuinfo = re.findall(r"^([a-z ]+):\s*(\d+)$", facts["apic-ids"], re.MULTILINE)
    assert [int(value) for key, value in cpuinfo if key == "apicid"] == list(range(cpus))
    assert [int(value) for key, value in cpuinfo if key == "initial apicid"] == list(range(cpus))
    assert {int(value) for key, value in cpuinfo if key in ("cpu cores", "siblings")} == {cpus}
    assert facts["run"].split() == [str(n) for n in range(cpus)]
    assert all(int(count) > 0 for count in re.findall(r"\b\d+\b", facts["timers"]))
    assert not re.search(r"Call Trace|mismatch|Firmware Bug", facts["log"])


def test_the_smallest_memory_that_the_small_guest_needs_is_enough(host: Rig) -> None:
    facts = boot(host, MEMORY_FACTS, "--memory", "80M")
    assert facts.status == 0, facts.stderr + facts.console[-2000:]
    assert _ram(facts) == [(MIB, 80 * MIB)]
    assert 40 * MIB < _total(facts) < 80 * MIB


def test_memory_lies_on_both_sides_of_the_hole_and_all_of_it_is_used(host: Rig) -> None:
    facts = boot(host, MEMORY_FACTS, "--memory", "3G")
    assert facts.status == 0, facts.stderr + facts.console[-2000:]
    assert _ram(facts) == [(MIB, layout.LOW_RAM_END), (4 * GIB, 5 * GIB)]
    assert 2.8 * GIB < _total(facts) < 3 * GIB


def test_a_guest_may_have_more_memory_than_the_host(host: Rig) -> None:
    (host_total,) = re.findall(rb"MemTotal: +(\d+)", host.run(["cat", "/proc/meminfo"]).stdout)
    # Memory behind the low and the high end is written to, and keeps what was written.
    commands = {
        **MEMORY_FACTS,
        "use": "mount -t tmpfs -o size=90% tmpfs /tmp; dd if=/dev/zero bs=1M count=16 2>/dev/null | "
        "tr '\\0' n >/tmp/f; tr -d n </tmp/f | wc -c; wc -c </tmp/f",
    }
    facts = boot(host, commands, "--memory", "8G")
    assert facts.status == 0, facts.stderr + facts.console[-2000:]
    assert _ram(facts) == [(MIB, layout.LOW_RAM_END), (4 * GIB, 10 * GIB)]
    assert _total(facts) > 7.5 * GIB > int(host_total) * 1024
    assert facts["use"].split() == ["0", str(16 * MIB)]
