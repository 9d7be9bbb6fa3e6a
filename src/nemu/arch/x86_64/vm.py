"""What an x86-64 VM needs beside RAM and CPUs: the interrupt controllers in the kernel."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from nemu.arch.x86_64 import abi, layout
from nemu.errors import HostError
from nemu.kvm import abi as kvm_abi

if TYPE_CHECKING:
    from nemu.kvm.handles import System, Vm


def require(system: System) -> None:
    """HostError unless KVM has everything that the ``virt`` machine is built on."""
    needed = {
        "KVM_CAP_USER_MEMORY": kvm_abi.KVM_CAP_USER_MEMORY,
        "KVM_CAP_IRQCHIP": kvm_abi.KVM_CAP_IRQCHIP,
        "KVM_CAP_SPLIT_IRQCHIP": abi.KVM_CAP_SPLIT_IRQCHIP,
        "KVM_CAP_IRQFD": kvm_abi.KVM_CAP_IRQFD,
        "KVM_CAP_IOEVENTFD_ANY_LENGTH": kvm_abi.KVM_CAP_IOEVENTFD_ANY_LENGTH,
        "KVM_CAP_SIGNAL_MSI": kvm_abi.KVM_CAP_SIGNAL_MSI,
        "KVM_CAP_READONLY_MEM": kvm_abi.KVM_CAP_READONLY_MEM,
        "KVM_CAP_IMMEDIATE_EXIT": kvm_abi.KVM_CAP_IMMEDIATE_EXIT,
    }
    for name, capability in needed.items():
        if not system.has(capability):
            raise HostError(f"this kernel's KVM lacks {name}; use Linux 4.12 or later, or --host emulated")


def create_irqchip(vm: Vm, kind: str) -> list[kvm_abi.kvm_irq_routing_entry]:
    """Make the interrupt controllers ("split" or "kernel"); gives the routes of their own pins.

    Before the first vCPU.  Split: only the local APICs are in the kernel, no PIC, PIT or IOAPIC code
    there is within the guest's reach.
    """
    _reserve_real_mode_pages(vm)
    if kind == "split":
        vm.enable(abi.KVM_CAP_SPLIT_IRQCHIP, layout.GSI_MSI_BASE)
        return []
    vm.create_irqchip()
    return [_ioapic_route(pin) for pin in range(abi.KVM_IOAPIC_NUM_PINS)]


def _ioapic_route(pin: int) -> kvm_abi.kvm_irq_routing_entry:
    entry = kvm_abi.kvm_irq_routing_entry(gsi=pin, type=kvm_abi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip = kvm_abi.kvm_irq_routing_irqchip(abi.KVM_IRQCHIP_IOAPIC, pin)
    return entry


def _reserve_real_mode_pages(vm: Vm) -> None:
    """Where KVM on Intel keeps its TSS and identity map for CPUs that start in real mode."""
    vm.call(abi.KVM_SET_IDENTITY_MAP_ADDR, abi.kvm_identity_map_addr(layout.KVM_IDENTITY_MAP))
    # Not by fcntl.ioctl: it takes no integer above 2^31 - 1, and this argument is an address.
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_ulong(layout.KVM_TSS)
    if libc.ioctl(vm.fd, ctypes.c_ulong(abi.KVM_SET_TSS_ADDR), address) < 0:
        raise HostError(f"KVM_SET_TSS_ADDR: {os.strerror(ctypes.get_errno())}")


class KernelPin:
    """A pin of the in-kernel IOAPIC as an edge-triggered line (interfaces.IrqLine)."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def signal(self) -> None:
        self._vm.irq_line(self._gsi, 1)
        self._vm.irq_line(self._gsi, 0)


def msi_sender(vm: Vm) -> Callable[[int, int], None]:
    """Deliver an MSI (address, data) at once; one that no local APIC takes is lost, as on a bus."""

    def send(address: int, data: int) -> None:
        vm.signal_msi(address, data)

    return send
