"""CPUID of the guest: what KVM supports, corrected where a hypervisor has to know better.

Sources: Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E,
Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from nemu.arch.x86_64 import abi
from nemu.errors import HostError
from nemu.ioctl import with_tail
from nemu.kvm.handles import System

if TYPE_CHECKING:
    from nemu.kvm.handles import Vcpu

MAX_ENTRIES = 256

# Leaf 1
_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
# Leaf 0xB and 0x1F: level types in ECX 15:8
_LEVEL_SMT, _LEVEL_CORE = 1, 2
# Leaf 0x80000001 ECX of AMD
_ECX_CMP_LEGACY = 1 << 1

_HYPERVISOR_BASE = 0x4000_0000
_HYPERVISOR_TIMING = 0x4000_0010
APIC_BUS_KHZ = 1_000_000  # KVM's local APIC timer counts nanoseconds


class CpuModel:
    """The CPUID table of every vCPU of a machine: ``cpus`` cores of one thread in one package."""

    def __init__(self, system: System, cpus: int) -> None:
        self._cpus = cpus
        self._id_bits = (cpus - 1).bit_length()
        self._entries = _supported(system)
        self._brand = _host_brand()

    @property
    def physical_bits(self) -> int:
        """How many bits of a guest-physical address reach something.

        EAX 7:0 is what the CPU has, 23:16 what a guest can use of it.  Where 23:16 is 0 (Linux before
        6.10), nested page tables of four levels may be all there is, and they end at 48 bits.
        """
        leaf = self._find(0x8000_0008)
        return min(leaf.eax & 0xFF, leaf.eax >> 16 & 0xFF or 48) if leaf is not None else 36

    def apply(self, vcpu: Vcpu, apic_id: int, tsc_khz: int) -> None:
        """Give ``vcpu`` its table."""
        entries = [abi.kvm_cpuid_entry2.from_buffer_copy(entry) for entry in self._entries]
        entries = [entry for entry in entries if entry.function not in _REPLACED]
        for entry in entries:
            self._correct(entry, apic_id)
        top = next(entry for entry in entries if entry.function == 0)
        if top.eax >= 0xB:
            entries += self._topology(0xB, apic_id)
        if top.eax >= 0x1F:
            entries += self._topology(0x1F, apic_id)
        if top.eax >= 0x15:
            # TSC Hz = crystal Hz * EBX / EAX; the local APIC timer runs at the crystal's frequency.
            entries.append(_entry(0x15, eax=APIC_BUS_KHZ, ebx=tsc_khz, ecx=APIC_BUS_KHZ * 1000))
        entries.append(_entry(_HYPERVISOR_TIMING, eax=tsc_khz, ebx=APIC_BUS_KHZ))
        table = with_tail(abi.kvm_cpuid2, abi.kvm_cpuid_entry2, len(entries))
        table.head.nent = len(entries)
        table.entries[:] = entries
        vcpu.call(abi.KVM_SET_CPUID2, table)

    def _correct(self, entry: Any, apic_id: int) -> None:
        others = self._cpus - 1
        match entry.function:
            case 0x1:
                # Without the hypervisor bit Linux looks for no KVM and then finds no timer at all.
                entry.ecx |= _ECX_HYPERVISOR | _ECX_TSC_DEADLINE
                # EBX 23:16: ids in the package; 256 do not fit and must not become 0.
                entry.ebx = entry.ebx & 0xFFFF | min(1 << self._id_bits, 255) << 16 | apic_id << 24
                entry.edx = entry.edx & ~_EDX_HTT | (_EDX_HTT if others else 0)
            case 0x4:  # EAX 31:26 cores in the package, 25:14 threads that share the cache, less one each
                shared = (1 << self._id_bits) - 1 if (entry.eax >> 5) & 7 >= 3 else 0
                if entry.eax & 0x1F:
                    entry.eax = entry.eax & 0x3FFF | shared << 14 | min((1 << self._id_bits) - 1, 63) << 26
            case 0x4000_0000:
                entry.eax = _HYPERVISOR_TIMING
            case 0x8000_0001:
                entry.ecx = entry.ecx & ~_ECX_CMP_LEGACY | (_ECX_CMP_LEGACY if others else 0)
            case 0x8000_0002 | 0x8000_0003 | 0x8000_0004:  # KVM leaves the name empty
                start = 16 * (entry.function - 0x8000_0002)
                registers = struct.unpack("<4I", self._brand[start : start + 16])
                entry.eax, entry.ebx, entry.ecx, entry.edx = registers
            case 0x8000_0008:  # ECX 7:0 cores less one, 15:12 bits of the APIC id (AMD; reserved on Intel)
                if self._is_amd:
                    entry.ecx = others & 0xFF | self._id_bits << 12
            case 0x8000_001D:  # EAX 25:14 threads that share the cache less one
                shared = others if (entry.eax >> 5) & 7 >= 3 else 0
                entry.eax = entry.eax & ~(0xFFF << 14) | shared << 14
            case 0x8000_001E:
                entry.eax, entry.ebx, entry.ecx = apic_id, apic_id & 0xFF, 0

    def _topology(self, function: int, apic_id: int) -> list[abi.kvm_cpuid_entry2]:
        """Extended topology: one thread a core, all cores in one package."""
        levels = [(0, 1, _LEVEL_SMT), (self._id_bits, self._cpus, _LEVEL_CORE), (0, 0, 0)]
        return [
            _entry(function, index, eax=shift, ebx=count, ecx=kind << 8 | index, edx=apic_id)
            for index, (shift, count, kind) in enumerate(levels)
        ]

    @property
    def _is_amd(self) -> bool:
        leaf = self._find(0)
        return leaf is not None and leaf.ecx == int.from_bytes(b"cAMD", "little")

    def _find(self, function: int) -> Any:
        return next((entry for entry in self._entries if entry.function == function), None)


# Leaves that are built anew from the topology and the frequencies.
_REPLACED = {0xB, 0x15, 0x1F, _HYPERVISOR_TIMING}


def _supported(system: System) -> list[Any]:
    table = with_tail(abi.kvm_cpuid2, abi.kvm_cpuid_entry2, MAX_ENTRIES)
    table.head.nent = MAX_ENTRIES
    system.call(abi.KVM_GET_SUPPORTED_CPUID, table)
    if not table.head.nent:
        raise HostError("KVM_GET_SUPPORTED_CPUID gave no entry")
    return list(table.entries[: table.head.nent])


def _host_brand() -> bytes:
    """The name of the host's CPU as leaves 0x80000002 to 4 have it: 48 bytes, with a final NUL."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(4096)  # the first CPU's part; all of it takes long on a large host
    except OSError:
        text = b""
    found = text.partition(b"model name")[2].partition(b"\n")[0].partition(b":")[2].strip()
    return found[:47].ljust(48, b"\0")


def _entry(function: int, index: int | None = None, **registers: int) -> abi.kvm_cpuid_entry2:
    flags = 0 if index is None else abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return abi.kvm_cpuid_entry2(function=function, index=index or 0, flags=flags, **registers)
