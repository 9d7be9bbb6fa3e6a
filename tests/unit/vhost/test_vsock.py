"""virtio-vsock by the host kernel: its address, and what it offers."""

from __future__ import annotations

import errno
import os

import pytest

from fakes.loop import FakeLoop
from fakes.vhost import FakeVhost
from nemu.errors import ConfigError, HostError
from nemu.memory import GuestRam
from nemu.vhost.vsock import F_SEQPACKET, VhostVsock, VsockPlane


def test_the_guest_reads_its_address(ram: GuestRam, loop: FakeLoop) -> None:
    kernel = FakeVhost("vsock")
    plane = VsockPlane(os.eventfd(0), 0xFFFF_FFFE, kernel)
    device = VhostVsock("virtio-vsock0", plane, ram, loop)
    assert kernel.cid == 0xFFFF_FFFE
    assert bytes(device.config) == b"\xfe\xff\xff\xff\0\0\0\0"
    assert (device.device_id, len(device.queue_sizes), device.features) == (19, 3, F_SEQPACKET)
    plane.close()


def test_an_address_in_use_is_refused_in_one_line() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        VsockPlane(os.eventfd(0), 5, FakeVhost("vsock", taken_cids=(5,)))
    assert str(caught.value) == "--vsock cid=5: another guest of this host has it"
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_descriptor_of_another_kind_is_refused() -> None:
    with pytest.raises(HostError, match="VHOST_VSOCK_SET_GUEST_CID: Inappropriate ioctl"):
        VsockPlane(os.eventfd(0), 5, FakeVhost("net"))
    with pytest.raises(HostError, match="VHOST_SET_OWNER: "):
        VsockPlane(os.open(os.devnull, os.O_RDWR), 5)


def test_other_errors_are_the_hosts() -> None:
    with pytest.raises(HostError, match="No such device"):
        VsockPlane(os.eventfd(0), 5, FakeVhost("vsock", fail={"VHOST_VSOCK_SET_GUEST_CID": errno.ENODEV}))
