"""The state in which a vCPU starts.

The first one starts at the kernel's entry, by PVH (32-bit flat) or by Linux's 64-bit boot
protocol; the others wait, inside KVM, for the guest's INIT and start-up messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemu.arch.x86_64 import abi, layout, linux64
from nemu.errors import HostError
from nemu.ioctl import with_tail

if TYPE_CHECKING:
    from nemu.boot.loader import Entry
    from nemu.kvm.handles import Vcpu

_CR0_PE, _CR0_ET, _CR0_PG = 1 << 0, 1 << 4, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_RESERVED = 1 << 1

_TYPE_CODE, _TYPE_DATA, _TYPE_TSS = 11, 3, 11  # accessed; busy TSS

_MSR_MISC_ENABLE, _FAST_STRINGS = 0x1A0, 1
_MSR_MTRR_DEF_TYPE, _MTRR_ENABLED_WRITE_BACK = 0x2FF, 1 << 11 | 6


def set_msrs(vcpu: Vcpu) -> None:
    """What firmware sets on every CPU: memory is write-back by default, string moves are fast."""
    values = {_MSR_MISC_ENABLE: _FAST_STRINGS, _MSR_MTRR_DEF_TYPE: _MTRR_ENABLED_WRITE_BACK}
    request = with_tail(abi.kvm_msrs, abi.kvm_msr_entry, len(values))
    request.head.nmsrs = len(values)
    for slot, (index, data) in zip(request.entries, values.items(), strict=True):
        slot.index, slot.data = index, data
    if vcpu.call(abi.KVM_SET_MSRS, request) != len(values):
        raise HostError("KVM_SET_MSRS: KVM refused an MSR")


def inject_nmi(vcpus: Sequence[Vcpu]) -> None:
    """A non-maskable interrupt to every CPU, as a button on the front panel gives."""
    for vcpu in vcpus:
        vcpu.call(abi.KVM_NMI)


class PowerOnState:
    """What has to be put back when a CPU that was removed comes again: the rest is the guest's INIT's.

    Taken from ``vcpu`` before it first runs.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        self._sregs, self._lapic, self._mp_state = abi.kvm_sregs(), abi.kvm_lapic_state(), abi.kvm_mp_state()
        vcpu.call(abi.KVM_GET_SREGS, self._sregs)
        vcpu.call(abi.KVM_GET_LAPIC, self._lapic)
        vcpu.call(abi.KVM_GET_MP_STATE, self._mp_state)

    def restore(self, vcpu: Vcpu) -> None:
        """Let ``vcpu`` wait for INIT as after power-on.  Its thread has ended."""
        vcpu.run.immediate_exit = 0
        vcpu.call(abi.KVM_SET_SREGS, self._sregs)
        vcpu.call(abi.KVM_SET_LAPIC, self._lapic)
        vcpu.call(abi.KVM_SET_MP_STATE, self._mp_state)


def tsc_khz(vcpu: Vcpu) -> int:
    return vcpu.call(abi.KVM_GET_TSC_KHZ)


def set_entry(vcpu: Vcpu, entry: Entry) -> None:
    """Put the first CPU at ``entry`` (Xen PVH ABI, or boot.rst "64-bit boot protocol")."""
    sregs = abi.kvm_sregs()
    vcpu.call(abi.KVM_GET_SREGS, sregs)
    long_mode = entry.protocol == "linux64"
    sregs.cs = _segment(linux64.BOOT_CS, _TYPE_CODE, long_mode=long_mode)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _segment(linux64.BOOT_DS, _TYPE_DATA))
    sregs.tr = abi.kvm_segment(limit=0x67, type=_TYPE_TSS, present=1)
    sregs.cr0 = _CR0_PE | _CR0_ET
    regs = abi.kvm_regs(rip=entry.rip, rflags=_RFLAGS_RESERVED)
    if long_mode:
        sregs.gdt.base, sregs.gdt.limit = layout.GDT, len(linux64.gdt()) - 1
        sregs.cr0 |= _CR0_PG
        sregs.cr3 = layout.BOOT_PAGE_TABLES
        sregs.cr4 = _CR4_PAE
        sregs.efer = _EFER_LME | _EFER_LMA
        regs.rsi = entry.argument
    else:
        regs.rbx = entry.argument
    vcpu.call(abi.KVM_SET_SREGS, sregs)
    vcpu.call(abi.KVM_SET_REGS, regs)


def _segment(selector: int, kind: int, *, long_mode: bool = False) -> abi.kvm_segment:
    """A flat segment over 4 GiB; a 64-bit code segment where ``long_mode``."""
    return abi.kvm_segment(
        limit=0xFFFFFFFF,
        selector=selector,
        type=kind,
        present=1,
        db=0 if long_mode else 1,
        s=1,
        l=int(long_mode),
        g=1,
    )
