"""The kernel's side of vhost descriptors, by its rules (drivers/vhost of Linux), and a tap to go with it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nemu.ioctl import Ioctl

MRG_RXBUF, INDIRECT, EVENT_IDX, VERSION_1 = 1 << 15, 1 << 28, 1 << 29, 1 << 32
NO_HEADER = 1 << 27
SEQPACKET = 1 << 1


def fails(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass
class Ring:
    """What the kernel was told of one ring; -1 and 0 as at the start."""

    num: int = 1
    base: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    kick: int = -1
    call: int = -1
    err: int = -1
    backend: int = -1


@dataclass
class FakeVhost:
    """Stands in for fcntl.ioctl on one descriptor.  ``fail`` has an errno for each ioctl that shall fail."""

    kind: str = "net"
    features: int = MRG_RXBUF | INDIRECT | EVENT_IDX | VERSION_1 | NO_HEADER | SEQPACKET
    fail: dict[str, int] = field(default_factory=dict)
    taken_cids: tuple[int, ...] = ()
    owned: bool = False
    acked: int = 0
    memory: list[tuple[int, int, int]] | None = None  # gpa, size, address here
    rings: tuple[Ring, Ring] = field(default_factory=lambda: (Ring(), Ring()))
    cid: int = 0
    running: bool = False
    calls: Counter[str] = field(default_factory=Counter)

    def __call__(self, fd: int, number: int, argument: Any = 0) -> int:
        assert isinstance(number, Ioctl)
        assert fd >= 0
        self.calls[number.name] += 1
        if number.name in self.fail:
            raise fails(self.fail[number.name])
        name = number.name.removeprefix("VHOST_").lower()
        handler = getattr(self, f"_{name}", None)
        if handler is None or (name.startswith(("net_", "vsock_")) and not name.startswith(self.kind)):
            raise fails(errno.ENOTTY)
        if name not in ("set_owner", "get_features", "vsock_set_guest_cid") and not self.owned:
            raise fails(errno.EPERM)
        handler(argument)
        return 0

    @property
    def idle(self) -> bool:
        """Nothing of a driver is left."""
        return (
            not self.running
            and self.memory == []
            and all(ring.kick == ring.call == ring.err == ring.backend == -1 for ring in self.rings)
        )

    def serves(self, index: int) -> bool:
        """Whether the kernel would take buffers out of this ring."""
        return self.rings[index].kick >= 0 and (self.running or self.rings[index].backend >= 0)

    def _set_owner(self, _: object) -> None:
        if self.owned:
            raise fails(errno.EBUSY)
        self.owned = True

    def _get_features(self, argument: Any) -> None:
        argument.value = self.features

    def _set_features(self, argument: Any) -> None:
        if argument.value & ~self.features:
            raise fails(errno.EOPNOTSUPP)
        self.acked = argument.value

    def _set_mem_table(self, argument: Any) -> None:
        assert ctypes.sizeof(argument) == 8 + 32 * argument.head.nregions
        self.memory = [
            (region.guest_phys_addr, region.memory_size, region.userspace_addr) for region in argument.entries
        ]

    def _stopped(self, index: int) -> Ring:
        ring = self.rings[index]
        if self.running or ring.backend >= 0:
            raise fails(errno.EBUSY)
        return ring

    def _set_vring_num(self, argument: Any) -> None:
        if not 0 < argument.num <= 0xFFFF or argument.num & (argument.num - 1):
            raise fails(errno.EINVAL)
        self._stopped(argument.index).num = argument.num

    def _set_vring_base(self, argument: Any) -> None:
        self._stopped(argument.index).base = argument.num

    def _set_vring_addr(self, argument: Any) -> None:
        ring = self.rings[argument.index]
        assert argument.flags == 0
        ring.desc, ring.avail, ring.used = (
            argument.desc_user_addr,
            argument.avail_user_addr,
            argument.used_user_addr,
        )
        for address, alignment in ((ring.desc, 16), (ring.avail, 2), (ring.used, 4)):
            assert any(start <= address < start + size for _, size, start in self.memory or [])
            if address % alignment:
                raise fails(errno.EINVAL)

    def _set_vring_kick(self, argument: Any) -> None:
        self.rings[argument.index].kick = argument.fd

    def _set_vring_call(self, argument: Any) -> None:
        self.rings[argument.index].call = argument.fd

    def _set_vring_err(self, argument: Any) -> None:
        self.rings[argument.index].err = argument.fd

    def _check_access(self) -> None:
        if self.memory is None:
            raise fails(errno.EFAULT)

    def _net_set_backend(self, argument: Any) -> None:
        self._check_access()
        self.rings[argument.index].backend = argument.fd

    def _vsock_set_guest_cid(self, argument: Any) -> None:
        if argument.value <= 2 or argument.value >= 0xFFFF_FFFF:
            raise fails(errno.EINVAL)
        if argument.value in self.taken_cids:
            raise fails(errno.EADDRINUSE)
        self.cid = argument.value

    def _vsock_set_running(self, argument: Any) -> None:
        if argument.value:
            self._check_access()
        self.running = bool(argument.value)


class FakeTap:
    """A queue of a tap as vhost-net uses it; ``error``: the interface is gone."""

    name = "tap0"
    features = 1

    def __init__(self, fd: int = 77, *, header: bool = True) -> None:
        self.fd = fd
        self.header = header
        self.attached = True
        self.error: OSError | None = None
        self.negotiated: list[int] = []

    def set_features(self, features: int) -> None:
        self._check()
        self.negotiated.append(features)

    def attach(self) -> None:
        self._check()
        self.attached = True

    def detach(self) -> None:
        self.attached = False

    def check(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.error:
            raise self.error
