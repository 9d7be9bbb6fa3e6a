"""A guest's clocks over a pause, on vCPUs whose time a test sets."""

from __future__ import annotations

import ctypes
from typing import Any

from nemu.arch.x86_64 import abi
from nemu.arch.x86_64.clock import GuestClock
from nemu.errors import HostError
from nemu.kvm import abi as kvm_abi


class Host:
    """The host's counter and its clock."""

    def __init__(self, *, has_offsets: bool = True) -> None:
        self.tsc = 1_000_000
        self.clock = 5_000
        self.has_offsets = has_offsets


class FakeVm:
    def __init__(self, host: Host) -> None:
        self._host = host

    def call(self, number: int, argument: Any = 0) -> int:
        if number == abi.KVM_GET_CLOCK:
            argument.clock = self._host.clock
        else:
            assert number == abi.KVM_SET_CLOCK
            assert argument.flags == 0
            self._host.clock = argument.clock
        return 0


class FakeVcpu:
    def __init__(self, host: Host, offset: int, *, kvmclock: bool = True) -> None:
        self._host = host
        self.offset = offset
        self._kvmclock = kvmclock
        self.told = 0

    @property
    def tsc(self) -> int:
        return (self._host.tsc + self.offset) % (1 << 64)

    def call(self, number: int, argument: Any = 0) -> int:
        if number == abi.KVM_GET_MSRS:
            assert (argument.head.nmsrs, argument.entries[0].index) == (1, 0x10)
            argument.entries[0].data = self.tsc
            self._host.tsc += 7  # reading takes time
            return 1
        if number == abi.KVM_KVMCLOCK_CTRL:
            if not self._kvmclock:
                raise HostError("KVM_KVMCLOCK_CTRL: Invalid argument")
            self.told += 1
            return 0
        if not self._host.has_offsets:
            raise HostError("no such attribute")
        value = ctypes.c_uint64.from_address(argument.addr)
        assert (argument.group, argument.attr) == (abi.KVM_VCPU_TSC_CTRL, abi.KVM_VCPU_TSC_OFFSET)
        if number == kvm_abi.KVM_GET_DEVICE_ATTR:
            value.value = self.offset
        else:
            self.offset = value.value
        return 0


def pause(host: Host, *vcpus: FakeVcpu) -> None:
    clock = GuestClock(FakeVm(host), vcpus)  # type: ignore[arg-type]
    clock.stop()
    host.tsc += 3_000_000_000
    host.clock += 1_000_000_000
    clock.start()


def test_both_clocks_go_on_from_where_they_were() -> None:
    host = Host()
    vcpus = [FakeVcpu(host, -900_000 % (1 << 64)), FakeVcpu(host, -900_000 % (1 << 64))]
    before = vcpus[0].tsc
    pause(host, *vcpus)
    assert 0 <= vcpus[0].tsc - before < 100
    assert vcpus[0].tsc == vcpus[1].tsc, "the CPUs agree as they did"
    assert host.clock == 5_000
    assert [vcpu.told for vcpu in vcpus] == [1, 1]


def test_an_older_host_and_a_guest_without_kvmclock_are_no_error() -> None:
    host = Host(has_offsets=False)
    vcpu = FakeVcpu(host, 0, kvmclock=False)
    pause(host, vcpu)
    assert (vcpu.offset, vcpu.told, host.clock) == (0, 0, 5_000)
