"""virtio-vsock between a guest and AF_VSOCK of the host kernel (vhost-vsock; virtio 1.2, section 5.10)."""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Collection
from ctypes import c_int, c_uint64
from typing import TYPE_CHECKING

from nemu.errors import ConfigError, GuestError, HostError
from nemu.ioctl import Call
from nemu.vhost import abi
from nemu.vhost.kernel import RINGS, DataPlane, VhostDevice

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam

DEVICE = "/dev/vhost-vsock"
QUEUE_SIZE = 256
F_SEQPACKET = 1 << 1  # 5.10.3


class VsockPlane(DataPlane):
    """The vhost-vsock descriptor ``fd`` of the guest with address ``cid``, which is its own from now on.

    Raises ConfigError where another guest of this host has that address.
    """

    def __init__(self, fd: int, cid: int, ioctl: Call = fcntl.ioctl) -> None:
        super().__init__(fd, ioctl)
        self.cid = cid
        try:
            self.call(abi.VHOST_VSOCK_SET_GUEST_CID, c_uint64(cid))
        except HostError as error:
            self.close()
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
                raise ConfigError("--vsock", f"cid={cid}", "another guest of this host has it") from None
            raise

    def _connect(self, rings: Collection[int]) -> None:
        if len(rings) < RINGS:
            raise GuestError("the receive queue and the transmit queue are not both enabled")
        self.call(abi.VHOST_VSOCK_SET_RUNNING, c_int(1))

    def _disconnect(self, rings: Collection[int]) -> None:
        self.call(abi.VHOST_VSOCK_SET_RUNNING, c_int(0))


class VhostVsock(VhostDevice):
    """The socket device of ``plane``.

    Its third queue, for events, stays with the driver's empty buffers: the only event is the loss of all
    connections by a migration (5.10.6.7).
    """

    device_id = 19
    queue_sizes = (QUEUE_SIZE,) * (RINGS + 1)

    def __init__(self, name: str, plane: VsockPlane, ram: GuestRam, loop: EventLoop) -> None:
        super().__init__(name, struct.pack("<Q", plane.cid), [plane], ram, loop)
        self.features = plane.features & F_SEQPACKET

    def _start(self, features: int) -> None:
        self._planes[0].run()
