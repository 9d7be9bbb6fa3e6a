"""Handles: errors that say what to do, and descriptors that are given back."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from nemu.errors import HostError
from nemu.ioctl import Handle, with_tail
from nemu.kvm import abi
from nemu.kvm.handles import System, Vcpu


def test_a_missing_kvm_says_what_to_load(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot open .*kvm: No such file.*kvm-intel or kvm-amd"):
        System(str(tmp_path / "kvm"))


def test_no_permission_says_which_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=r"Permission denied .*group that owns it"):
        System("/dev/kvm")


def test_something_that_is_not_kvm_is_refused_and_closed() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="KVM_GET_API_VERSION"):
        System("/dev/null")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_failed_call_names_the_ioctl() -> None:
    handle = Handle(os.open("/dev/null", os.O_RDWR))
    with pytest.raises(HostError, match=r"^KVM_CREATE_IRQCHIP: "):
        handle.call(abi.KVM_CREATE_IRQCHIP)
    handle.close()
    handle.close()


def test_a_table_is_a_header_with_its_entries_right_behind() -> None:
    table = with_tail(abi.kvm_irq_routing, abi.kvm_irq_routing_entry, 3)
    table.head.nr = 3
    table.entries[1].gsi = 0x55
    raw = bytes(table)
    assert len(raw) == 8 + 3 * 48
    assert raw[0] == 3
    assert raw[8 + 48] == 0x55


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EFAULT, "the guest touched memory that the host cannot give it"), (errno.EIO, "KVM_RUN: ")],
)
def test_memory_that_the_host_cannot_give_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def run(fd: int, request: int, argument: int) -> int:
        raise OSError(number, os.strerror(number))

    fd = os.memfd_create("vcpu")
    os.ftruncate(fd, mmap.PAGESIZE)
    vcpu = Vcpu(fd, mmap.PAGESIZE)
    monkeypatch.setattr(fcntl, "ioctl", run)
    with pytest.raises(HostError, match=text):
        vcpu.enter()
    vcpu.close()
