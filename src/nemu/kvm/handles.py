"""Handles on KVM's descriptors: ``System`` (/dev/kvm), ``Vm`` and ``Vcpu``.

A failed call is a HostError that names the ioctl.  Each handle owns its descriptor; ``close``
may be called twice.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from nemu.errors import HostError
from nemu.ioctl import Handle, with_tail
from nemu.kvm import abi

if TYPE_CHECKING:
    from collections.abc import Sequence

DEV_KVM = "/dev/kvm"


class System(Handle):
    """/dev/kvm."""

    def __init__(self, path: str = DEV_KVM) -> None:
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise HostError(f"cannot open {path}: {error.strerror}{_remedy(error)}") from error
        try:
            version = self.call(abi.KVM_GET_API_VERSION)
            if version != abi.KVM_API_VERSION:
                raise HostError(f"{path} speaks KVM API version {version}, need {abi.KVM_API_VERSION}")
        except HostError:
            self.close()
            raise

    def has(self, capability: int) -> int:
        """0 where KVM lacks the capability, else its value."""
        return self.call(abi.KVM_CHECK_EXTENSION, capability)

    def create_vm(self) -> Vm:
        # EINTR: a signal while KVM allocates; nothing was made.
        while True:
            try:
                return Vm(fcntl.ioctl(self.fd, abi.KVM_CREATE_VM, 0), self.call(abi.KVM_GET_VCPU_MMAP_SIZE))
            except InterruptedError:
                continue
            except OSError as error:
                raise HostError(f"KVM_CREATE_VM: {error.strerror}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return " (add yourself to the group that owns it, usually kvm, or use --host emulated)"
    return " (load kvm-intel or kvm-amd, or use --host emulated)"


class Vm(Handle):
    """One virtual machine: memory slots, interrupt routes, doorbells, vCPUs."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size

    def create_vcpu(self, index: int) -> Vcpu:
        return Vcpu(self.call(abi.KVM_CREATE_VCPU, index), self._run_size)

    def enable(self, capability: int, *args: int) -> None:
        request = abi.kvm_enable_cap(cap=capability)
        request.args[: len(args)] = args
        self.call(abi.KVM_ENABLE_CAP, request)

    def create_irqchip(self) -> None:
        self.call(abi.KVM_CREATE_IRQCHIP)

    def irq_line(self, gsi: int, level: int) -> None:
        self.call(abi.KVM_IRQ_LINE, abi.kvm_irq_level(gsi, level))

    def set_memory(self, slot: int, gpa: int, size: int, host: int, *, readonly: bool = False) -> None:
        """Map ``size`` bytes at ``host`` (virtual address) to ``gpa``; size 0 removes the slot."""
        flags = abi.KVM_MEM_READONLY if readonly else 0
        region = abi.kvm_userspace_memory_region(slot, flags, gpa, size, host)
        self.call(abi.KVM_SET_USER_MEMORY_REGION, region)

    def ioeventfd(
        self, address: int, eventfd: int, *, assign: bool, width: int = 0, port: bool = False
    ) -> None:
        """A guest write of ``width`` bytes (0: any) signals ``eventfd`` instead of exiting.

        ``address`` is guest-physical, or an I/O port where ``port``.
        """
        flags = 0 if assign else abi.KVM_IOEVENTFD_FLAG_DEASSIGN
        flags |= abi.KVM_IOEVENTFD_FLAG_PIO if port else 0
        self.call(abi.KVM_IOEVENTFD, abi.kvm_ioeventfd(addr=address, len=width, fd=eventfd, flags=flags))

    def irqfd(self, gsi: int, eventfd: int, *, assign: bool) -> None:
        """A signal on ``eventfd`` raises ``gsi`` by its route; a pending one does so at once."""
        flags = 0 if assign else abi.KVM_IRQFD_FLAG_DEASSIGN
        self.call(abi.KVM_IRQFD, abi.kvm_irqfd(fd=eventfd, gsi=gsi, flags=flags))

    def set_gsi_routing(self, entries: Sequence[abi.kvm_irq_routing_entry]) -> None:
        """Replace the whole table."""
        table = with_tail(abi.kvm_irq_routing, abi.kvm_irq_routing_entry, len(entries))
        table.head.nr = len(entries)
        table.entries[:] = entries
        self.call(abi.KVM_SET_GSI_ROUTING, table)

    def signal_msi(self, address: int, data: int) -> bool:
        """Deliver a message at once; False where no local APIC took it."""
        message = abi.kvm_msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        return self.call(abi.KVM_SIGNAL_MSI, message) > 0


class Vcpu(Handle):
    """One virtual CPU.  ``run`` is the mapped kvm_run."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self.mapping = mmap.mmap(fd, run_size)
        self.run = abi.kvm_run.from_buffer(self.mapping)

    def enter(self) -> bool:
        """KVM_RUN until the next exit; False where a signal or ``immediate_exit`` ended it."""
        try:
            fcntl.ioctl(self.fd, abi.KVM_RUN, 0)
        except (InterruptedError, BlockingIOError):  # EAGAIN: an AP that still waits for INIT-SIPI
            return False
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise HostError("the guest touched memory that the host cannot give it") from error
            raise HostError(f"KVM_RUN: {error.strerror}") from error
        return True

    def close(self) -> None:
        if self.fd >= 0:
            del self.run
            try:
                self.mapping.close()
            except BufferError:  # the traceback of an error on its way out holds a part of kvm_run
                pass
        super().close()
