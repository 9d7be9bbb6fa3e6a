"""CPUID as a guest's topology code reads it, for both vendors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from nemu.arch.x86_64 import abi
from nemu.arch.x86_64.cpuid import CpuModel
from nemu.errors import HostError

KHZ = 2_450_000
COUNTS = [1, 2, 3, 4, 128, 129, 255]
Leaf = tuple[int, int, int, int]


def signature(eax: int, *parts: bytes) -> Leaf:
    """EAX, and a vendor's name in EBX, ECX and EDX."""
    ebx, ecx, edx = (int.from_bytes(part, "little") for part in parts)
    return eax, ebx, ecx, edx


INTEL: dict[tuple[int, int], Leaf] = {
    (0x0, 0): signature(0x1F, b"Genu", b"ntel", b"ineI"),
    (0x1, 0): (0x606A6, 0x1700_0800, 0x7FFA_3203, 0x1F8B_FBFF),
    (0x4, 0): (0xFC00_4121, 0x02C0_003F, 63, 0),  # L1 data
    (0x4, 1): (0xFC00_4122, 0x01C0_003F, 63, 0),  # L1 code
    (0x4, 2): (0xFC00_4143, 0x04C0_003F, 1023, 0),  # L2
    (0x4, 3): (0xFC1F_C163, 0x0380_003F, 65535, 0),  # L3
    (0x4, 4): (0, 0, 0, 0),
    (0xB, 0): (1, 2, 0x100, 0x17),
    (0xB, 1): (6, 48, 0x201, 0x17),
    (0x15, 0): (2, 168, 0, 0),
    (0x1F, 0): (1, 2, 0x100, 0x17),
    (0x4000_0000, 0): signature(0x4000_0001, b"KVMK", b"VMKV", b"M\0\0\0"),
    (0x4000_0001, 0): (0x0100_7EFB, 0, 0, 0),
    (0x8000_0000, 0): (0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0): (0, 0, 0x121, 0x2C10_0800),
    (0x8000_0008, 0): (0x302E, 0, 0, 0),
}  # fmt: skip

AMD: dict[tuple[int, int], Leaf] = {
    (0x0, 0): signature(0x10, b"Auth", b"cAMD", b"enti"),
    (0x1, 0): (0xA00F11, 0x3380_0800, 0x7EF8_320B, 0x178B_FBFF),
    (0xB, 0): (1, 2, 0x100, 0x33),
    (0x4000_0000, 0): INTEL[0x4000_0000, 0],
    (0x4000_0001, 0): INTEL[0x4000_0001, 0],
    (0x8000_0000, 0): (0x8000_0021, 0, 0, 0),
    (0x8000_0001, 0): (0xA00F11, 0x4000_0000, 0x75C2_37FF, 0x2FD3_FBFF),
    (0x8000_0008, 0): (0x3030, 0x111E_D205, 0x703F, 0x0001_0000),
    (0x8000_001D, 0): (0x0000_4121, 0x01C0_003F, 63, 0),
    (0x8000_001D, 1): (0x0000_4122, 0x01C0_003F, 63, 0),
    (0x8000_001D, 2): (0x0000_4143, 0x01C0_003F, 1023, 2),
    (0x8000_001D, 3): (0x0003_C163, 0x03C0_003F, 32767, 1),
    (0x8000_001E, 0): (0x33, 0x0119, 0x0300, 0),
}


class FakeSystem:
    """/dev/kvm that supports ``leaves``."""

    def __init__(self, leaves: dict[tuple[int, int], Leaf]) -> None:
        self.leaves = leaves

    def call(self, number: int, table: Any) -> int:
        assert number == abi.KVM_GET_SUPPORTED_CPUID
        assert table.head.nent >= len(self.leaves)
        for entry, ((function, index), registers) in zip(table.entries, self.leaves.items(), strict=False):
            entry.function, entry.index = function, index
            entry.eax, entry.ebx, entry.ecx, entry.edx = registers
        table.head.nent = len(self.leaves)
        return 0


class FakeVcpu:
    def __init__(self) -> None:
        self.leaves: dict[tuple[int, int], Leaf] = {}

    def call(self, number: int, table: Any) -> int:
        assert number == abi.KVM_SET_CPUID2
        entries = table.entries[: table.head.nent]
        assert len(entries) == len(table.entries)
        for entry in entries:
            key = (entry.function, entry.index)
            assert key not in self.leaves, f"leaf {key} is there twice"
            self.leaves[key] = (entry.eax, entry.ebx, entry.ecx, entry.edx)
        return 0


def tables(leaves: dict[tuple[int, int], Leaf], cpus: int) -> list[dict[tuple[int, int], Leaf]]:
    model = CpuModel(FakeSystem(leaves), cpus)  # type: ignore[arg-type]
    vcpus = [FakeVcpu() for _ in range(cpus)]
    for apic_id, vcpu in enumerate(vcpus):
        model.apply(vcpu, apic_id, KHZ)  # type: ignore[arg-type]
    return [vcpu.leaves for vcpu in vcpus]


BOTH = pytest.mark.parametrize("leaves", [INTEL, AMD], ids=["intel", "amd"])


@BOTH
@pytest.mark.parametrize("cpus", COUNTS)
def test_every_cpu_has_its_own_apic_id_in_every_leaf(leaves: dict[tuple[int, int], Leaf], cpus: int) -> None:
    for apic_id, table in enumerate(tables(leaves, cpus)):
        assert table[1, 0][1] >> 24 == apic_id
        for leaf in (0xB, 0x1F):
            if leaf <= table[0, 0][0]:
                assert {table[leaf, index][3] for index in range(3)} == {apic_id}
        if (0x8000_001E, 0) in table:
            assert table[0x8000_001E, 0][:3] == (apic_id, apic_id, 0)


@BOTH
@pytest.mark.parametrize("cpus", COUNTS)
def test_extended_topology_is_one_package_of_single_thread_cores(
    leaves: dict[tuple[int, int], Leaf], cpus: int
) -> None:
    """As Linux's detect_extended_topology: the ids above a level's shift are the same for who shares it."""
    for apic_id, table in enumerate(tables(leaves, cpus)):
        thread, core, end = (table[0xB, index] for index in range(3))
        assert (thread[0], thread[1], thread[2]) == (0, 1, 0x100)
        assert (core[1], core[2]) == (cpus, 0x201)
        assert apic_id >> core[0] == 0
        assert (end[1], end[2]) == (0, 2)
        assert 1 << core[0] < 2 * cpus or cpus == 1


@BOTH
@pytest.mark.parametrize("cpus", COUNTS)
def test_leaf_1_has_a_count_that_covers_every_id_and_never_wraps(
    leaves: dict[tuple[int, int], Leaf], cpus: int
) -> None:
    _, ebx, ecx, edx = tables(leaves, cpus)[0][1, 0]
    assert min(cpus, 255) <= ebx >> 16 & 0xFF <= 255
    assert ebx & 0xFFFF == 0x0800
    assert bool(edx >> 28 & 1) is (cpus > 1)
    assert ecx >> 31 == 1  # a hypervisor, or Linux looks for no KVM
    assert ecx >> 24 & 1 == 1  # TSC deadline


@pytest.mark.parametrize("cpus", COUNTS)
def test_intel_caches_the_first_levels_are_a_cores_own_and_the_third_is_shared(cpus: int) -> None:
    for table in tables(INTEL, cpus):
        for index, cache in enumerate((0x121, 0x122, 0x143, 0x163)):
            eax = table[4, index][0]
            assert eax & 0x3FF == cache
            sharing = (eax >> 14 & 0xFFF) + 1
            assert sharing == 1 if index < 3 else sharing >= cpus
            assert (eax >> 26) + 1 >= min(cpus, 64)
            assert table[4, index][1:] == INTEL[4, index][1:]
        assert table[4, 4] == (0, 0, 0, 0)


@pytest.mark.parametrize("cpus", COUNTS)
def test_amd_core_count_and_caches(cpus: int) -> None:
    for table in tables(AMD, cpus):
        size = table[0x8000_0008, 0][2]
        assert (size & 0xFF) + 1 == cpus
        assert 1 << (size >> 12 & 0xF) >= cpus
        assert [(table[0x8000_001D, index][0] >> 14 & 0xFFF) + 1 for index in range(4)] == [1, 1, 1, cpus]
        assert bool(table[0x8000_0001, 0][2] & 2) is (cpus > 1)


def test_reserved_bits_of_intel_stay_zero() -> None:
    (table,) = tables(INTEL, 1)
    assert table[0x8000_0008, 0][2] == 0


def test_the_frequencies_agree_whichever_leaf_a_guest_reads() -> None:
    (table,) = tables(INTEL, 1)
    denominator, numerator, crystal_hz, _ = table[0x15, 0]
    assert crystal_hz * numerator // denominator == KHZ * 1000
    assert table[0x4000_0010, 0][:2] == (KHZ, crystal_hz // 1000)
    assert table[0x4000_0000, 0][0] >= 0x4000_0010
    assert table[0x4000_0000, 0][1:] == INTEL[0x4000_0000, 0][1:]
    assert table[0x4000_0001, 0] == INTEL[0x4000_0001, 0]


def test_leaves_above_the_cpus_own_limit_are_not_invented() -> None:
    old = {**AMD, (0, 0): (0xA, *AMD[0, 0][1:])}
    del old[0xB, 0]
    (table,) = tables(old, 1)
    assert {function for function, _ in table if function < 0x4000_0000} == {0, 1}


@BOTH
def test_the_same_table_for_every_cpu_but_its_id(leaves: dict[tuple[int, int], Leaf]) -> None:
    first, second = tables(leaves, 2)
    different = {function for function, index in first if first[function, index] != second[function, index]}
    assert different <= {1, 0xB, 0x1F, 0x8000_001E}


def test_the_cpu_is_called_what_the_host_calls_it() -> None:
    empty = {(0x8000_0000 + number, 0): (0, 0, 0, 0) for number in (2, 3, 4)}
    (table,) = tables({**AMD, **empty}, 1)
    brand = b"".join(struct.pack("<4I", *table[key]) for key in sorted(empty)).rstrip(b"\0").decode()
    assert brand
    assert f": {brand}" in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(
    ("eax", "bits"),
    [(0x302E, 46), (0x3028, 40), (0x3930, 48), (0x3934, 48), (0x0030_3934, 48), (0x0034_3934, 52)],
)
def test_physical_bits_are_what_a_guest_can_reach(eax: int, bits: int) -> None:
    model = CpuModel(FakeSystem({**INTEL, (0x8000_0008, 0): (eax, 0, 0, 0)}), 1)  # type: ignore[arg-type]
    assert model.physical_bits == bits


def test_physical_bits_without_the_leaf() -> None:
    leaves = {key: value for key, value in INTEL.items() if key[0] != 0x8000_0008}
    assert CpuModel(FakeSystem(leaves), 1).physical_bits == 36  # type: ignore[arg-type]


def test_a_kvm_that_supports_nothing_is_an_error() -> None:
    with pytest.raises(HostError, match="KVM_GET_SUPPORTED_CPUID"):
        CpuModel(FakeSystem({}), 1)  # type: ignore[arg-type]
