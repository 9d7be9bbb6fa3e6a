"""The x86 part of the KVM interface (arch/x86/include/uapi/asm/kvm.h), under kernel names."""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

from nemu.kvm.abi import io, ior, iow, iowr


class kvm_regs(Structure):
    _fields_ = [
        (name, c_uint64)
        for name in (
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
            "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
        )
    ]  # fmt: skip


class kvm_segment(Structure):
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class kvm_dtable(Structure):
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class kvm_sregs(Structure):
    _fields_ = [
        ("cs", kvm_segment),
        ("ds", kvm_segment),
        ("es", kvm_segment),
        ("fs", kvm_segment),
        ("gs", kvm_segment),
        ("ss", kvm_segment),
        ("tr", kvm_segment),
        ("ldt", kvm_segment),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class kvm_cpuid_entry2(Structure):
    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0


class kvm_cpuid2(Structure):
    """Followed by ``nent`` kvm_cpuid_entry2."""

    _fields_ = [("nent", c_uint32), ("padding", c_uint32)]


class kvm_msr_entry(Structure):
    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


class kvm_msrs(Structure):
    """Followed by ``nmsrs`` kvm_msr_entry."""

    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32)]


class kvm_clock_data(Structure):
    _fields_ = [
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    ]


KVM_VCPU_TSC_CTRL = 0  # a group of attributes of a vCPU
KVM_VCPU_TSC_OFFSET = 0


class kvm_mp_state(Structure):
    _fields_ = [("mp_state", c_uint32)]


class kvm_lapic_state(Structure):
    _fields_ = [("regs", c_uint8 * 0x400)]


class kvm_identity_map_addr(Structure):
    """A plain __u64 in the kernel's header."""

    _fields_ = [("address", c_uint64)]


KVM_CAP_SPLIT_IRQCHIP = 121
KVM_IRQCHIP_IOAPIC = 2
KVM_IOAPIC_NUM_PINS = 24

KVM_GET_SUPPORTED_CPUID = iowr("KVM_GET_SUPPORTED_CPUID", 0x05, kvm_cpuid2)
KVM_SET_TSS_ADDR = io("KVM_SET_TSS_ADDR", 0x47)
KVM_SET_IDENTITY_MAP_ADDR = iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, kvm_identity_map_addr)
KVM_SET_CLOCK = iow("KVM_SET_CLOCK", 0x7B, kvm_clock_data)
KVM_GET_CLOCK = ior("KVM_GET_CLOCK", 0x7C, kvm_clock_data)
KVM_GET_REGS = ior("KVM_GET_REGS", 0x81, kvm_regs)
KVM_SET_REGS = iow("KVM_SET_REGS", 0x82, kvm_regs)
KVM_GET_SREGS = ior("KVM_GET_SREGS", 0x83, kvm_sregs)
KVM_SET_SREGS = iow("KVM_SET_SREGS", 0x84, kvm_sregs)
KVM_GET_MSRS = iowr("KVM_GET_MSRS", 0x88, kvm_msrs)
KVM_SET_MSRS = iow("KVM_SET_MSRS", 0x89, kvm_msrs)
KVM_SET_CPUID2 = iow("KVM_SET_CPUID2", 0x90, kvm_cpuid2)
KVM_GET_LAPIC = ior("KVM_GET_LAPIC", 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = iow("KVM_SET_LAPIC", 0x8F, kvm_lapic_state)
KVM_GET_MP_STATE = ior("KVM_GET_MP_STATE", 0x98, kvm_mp_state)
KVM_SET_MP_STATE = iow("KVM_SET_MP_STATE", 0x99, kvm_mp_state)
KVM_NMI = io("KVM_NMI", 0x9A)
KVM_GET_TSC_KHZ = io("KVM_GET_TSC_KHZ", 0xA3)
KVM_KVMCLOCK_CTRL = io("KVM_KVMCLOCK_CTRL", 0xAD)
