"""The clocks of a guest while its CPUs stand still: they stand still as well.

Linux takes its time from kvmclock (KVM_GET_CLOCK, KVM_SET_CLOCK) or from the time stamp counter, whose
offset to the host's is an attribute of each vCPU (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_CTRL;
Linux 5.16).  On an older host a guest that uses the counter sees a pause as time that has passed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nemu.arch.x86_64 import abi
from nemu.errors import HostError
from nemu.ioctl import with_tail
from nemu.kvm import abi as kvm_abi

if TYPE_CHECKING:
    from nemu.kvm.handles import Vcpu, Vm

_MSR_TSC = 0x10


class GuestClock:
    """What tells the time to the guest of ``vm`` (interfaces.Clock)."""

    def __init__(self, vm: Vm, vcpus: Sequence[Vcpu]) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._clock = 0  # ns
        self._tsc = 0

    def stop(self) -> None:
        """Note the time at which ``start`` lets it go on."""
        now = abi.kvm_clock_data()
        self._vm.call(abi.KVM_GET_CLOCK, now)
        self._clock = now.clock
        self._tsc = _read_tsc(self._vcpus[0])

    def start(self) -> None:
        """Go on from the time of ``stop``."""
        # One CPU's count for all of them, or they would not agree any more.
        missed = _read_tsc(self._vcpus[0]) - self._tsc
        for vcpu in self._vcpus:
            with suppress(HostError):  # a host without the attribute
                _set_tsc_offset(vcpu, _tsc_offset(vcpu) - missed)
        self._vm.call(abi.KVM_SET_CLOCK, abi.kvm_clock_data(clock=self._clock))
        for vcpu in self._vcpus:
            with suppress(HostError):  # EINVAL: a guest that does not use kvmclock
                # Its watchdogs take no offence at a CPU that has been away.
                vcpu.call(abi.KVM_KVMCLOCK_CTRL)


def _read_tsc(vcpu: Vcpu) -> int:
    request = with_tail(abi.kvm_msrs, abi.kvm_msr_entry, 1)
    request.head.nmsrs = 1
    request.entries[0].index = _MSR_TSC
    if vcpu.call(abi.KVM_GET_MSRS, request) != 1:
        raise HostError("KVM_GET_MSRS: KVM refused the time stamp counter")
    return int(request.entries[0].data)


def _tsc_offset(vcpu: Vcpu) -> int:
    value = ctypes.c_uint64()
    vcpu.call(kvm_abi.KVM_GET_DEVICE_ATTR, _tsc_attribute(value))
    return value.value


def _set_tsc_offset(vcpu: Vcpu, offset: int) -> None:
    value = ctypes.c_uint64(offset)
    vcpu.call(kvm_abi.KVM_SET_DEVICE_ATTR, _tsc_attribute(value))


def _tsc_attribute(value: ctypes.c_uint64) -> kvm_abi.kvm_device_attr:
    """``value`` must live until the call is over."""
    return kvm_abi.kvm_device_attr(
        group=abi.KVM_VCPU_TSC_CTRL, attr=abi.KVM_VCPU_TSC_OFFSET, addr=ctypes.addressof(value)
    )
