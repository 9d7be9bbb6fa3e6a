"""The KVM interface as data: ioctl numbers and the structures they take, under their kernel names.

Source: Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h.  What only x86 has is
in ``nemu.arch.x86_64.abi``.  ``tests/unit/test_abi.py`` compares every number, size and offset here
with the kernel's headers.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from nemu.ioctl import Family

KVMIO = 0xAE
_kvm = Family(KVMIO)
io, ior, iow, iowr = _kvm.io, _kvm.ior, _kvm.iow, _kvm.iowr

KVM_API_VERSION = 12


# --- structures -----------------------------------------------------------------------


class kvm_userspace_memory_region(Structure):
    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


KVM_MEM_READONLY = 1 << 1


class kvm_irqfd(Structure):
    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


KVM_IRQFD_FLAG_DEASSIGN = 1 << 0


class kvm_ioeventfd(Structure):
    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2


class kvm_irq_routing_irqchip(Structure):
    _fields_ = [("irqchip", c_uint32), ("pin", c_uint32)]


class kvm_irq_routing_msi(Structure):
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("devid", c_uint32),
    ]


class _irq_routing_union(Union):
    _fields_ = [
        ("irqchip", kvm_irq_routing_irqchip),
        ("msi", kvm_irq_routing_msi),
        ("pad", c_uint32 * 8),
    ]


class kvm_irq_routing_entry(Structure):
    _fields_ = [
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("u", _irq_routing_union),
    ]


KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2


class kvm_irq_routing(Structure):
    """Followed by ``nr`` kvm_irq_routing_entry."""

    _fields_ = [("nr", c_uint32), ("flags", c_uint32)]


class kvm_msi(Structure):
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    ]


class kvm_irq_level(Structure):
    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class kvm_device_attr(Structure):
    _fields_ = [("flags", c_uint32), ("group", c_uint32), ("attr", c_uint64), ("addr", c_uint64)]


class kvm_enable_cap(Structure):
    _fields_ = [
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    ]


class _exit_fail_entry(Structure):
    _fields_ = [("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32)]


class _exit_io(Structure):
    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class _exit_mmio(Structure):
    _fields_ = [
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    ]


class _exit_internal(Structure):
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _exit_system_event(Structure):
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _exit_eoi(Structure):
    _fields_ = [("vector", c_uint8)]


class _exit_union(Union):
    _fields_ = [
        ("fail_entry", _exit_fail_entry),
        ("io", _exit_io),
        ("mmio", _exit_mmio),
        ("internal", _exit_internal),
        ("system_event", _exit_system_event),
        ("eoi", _exit_eoi),
        ("padding", c_uint8 * 256),
    ]


class kvm_run(Structure):
    """The page that KVM and a vCPU's thread share, up to the exit (we sync no registers)."""

    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _exit_union),
    ]


KVM_EXIT_IO_OUT = 1

# --- exit reasons -----------------------------------------------------------------------

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24


# --- capabilities -------------------------------------------------------------------------

KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_IRQFD = 32
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_IMMEDIATE_EXIT = 136

# --- ioctls, by the descriptor that takes them ----------------------------------------

# /dev/kvm
KVM_GET_API_VERSION = io("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM = io("KVM_CREATE_VM", 0x01)
KVM_CHECK_EXTENSION = io("KVM_CHECK_EXTENSION", 0x03)
KVM_GET_VCPU_MMAP_SIZE = io("KVM_GET_VCPU_MMAP_SIZE", 0x04)

# a VM
KVM_CREATE_VCPU = io("KVM_CREATE_VCPU", 0x41)
# KVM_CAP_USER_MEMORY
KVM_SET_USER_MEMORY_REGION = iow("KVM_SET_USER_MEMORY_REGION", 0x46, kvm_userspace_memory_region)
# KVM_CAP_IRQCHIP
KVM_CREATE_IRQCHIP = io("KVM_CREATE_IRQCHIP", 0x60)
KVM_IRQ_LINE = iow("KVM_IRQ_LINE", 0x61, kvm_irq_level)
# KVM_CAP_IRQ_ROUTING
KVM_SET_GSI_ROUTING = iow("KVM_SET_GSI_ROUTING", 0x6A, kvm_irq_routing)
# KVM_CAP_IRQFD
KVM_IRQFD = iow("KVM_IRQFD", 0x76, kvm_irqfd)
# KVM_CAP_IOEVENTFD
KVM_IOEVENTFD = iow("KVM_IOEVENTFD", 0x79, kvm_ioeventfd)
# KVM_CAP_ENABLE_CAP_VM
KVM_ENABLE_CAP = iow("KVM_ENABLE_CAP", 0xA3, kvm_enable_cap)
# KVM_CAP_SIGNAL_MSI
KVM_SIGNAL_MSI = iow("KVM_SIGNAL_MSI", 0xA5, kvm_msi)

# a vCPU
KVM_RUN = io("KVM_RUN", 0x80)
# KVM_CAP_VCPU_ATTRIBUTES (as well as of devices and VMs)
KVM_SET_DEVICE_ATTR = iow("KVM_SET_DEVICE_ATTR", 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = iow("KVM_GET_DEVICE_ATTR", 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = iow("KVM_HAS_DEVICE_ATTR", 0xE3, kvm_device_attr)
