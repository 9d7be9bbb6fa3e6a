"""A tap interface of the host, by name or as an inherited descriptor.

With IFF_VNET_HDR each packet carries the header that virtio-net uses, so that checksums and
segmentation pass between guest and host kernel undone.  Sources: linux/if_tun.h and the
kernel's Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Sequence

from nemu import iovec
from nemu.backends.netdev import HEADER_SIZE
from nemu.errors import ConfigError, HostError

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETQUEUE = 0x400454D9
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8

# virtio 1.2, 5.1.3
F_CSUM, F_GUEST_CSUM = 1 << 0, 1 << 1
F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN = 1 << 11, 1 << 12, 1 << 13
OFFLOADS = (
    F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
)

_IFREQ = struct.Struct("16sH22x")
DEVICE = "/dev/net/tun"


class Tap:
    """A queue of a tap; owns ``fd``.  ``name`` is the interface's.

    ``header``: frames have that of virtio-net (IFF_VNET_HDR); ``several``: the tap may have more queues.
    Offloads are those of the interface, set by any of its queues.
    """

    def __init__(self, fd: int, name: str, *, header: bool, several: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.features = 0
        self.header = header
        self._several = several
        self._attached = True
        if header:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", HEADER_SIZE))
            try:
                self.set_features(OFFLOADS)
                self.features = OFFLOADS
            except OSError:
                pass  # without the header's offloads, then
            self.set_features(0)

    def fileno(self) -> int:
        return self.fd

    def set_features(self, features: int) -> None:
        offloads = 0
        if features & F_GUEST_CSUM:  # 5.1.3.1: the others need it
            offloads = TUN_F_CSUM
            offloads |= TUN_F_TSO4 if features & F_GUEST_TSO4 else 0
            offloads |= TUN_F_TSO6 if features & F_GUEST_TSO6 else 0
            if features & F_GUEST_ECN and offloads != TUN_F_CSUM:
                offloads |= TUN_F_TSO_ECN
        if self.header:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, offloads)

    def receive(self, views: Sequence[memoryview]) -> int:
        try:
            if self.header:
                return os.readv(self.fd, views)
            length = os.readv(self.fd, iovec.skip(views, HEADER_SIZE))
        except BlockingIOError:
            return 0
        iovec.scatter(views, bytes(HEADER_SIZE))
        return HEADER_SIZE + length

    def send(self, views: Sequence[memoryview]) -> bool:
        try:
            os.writev(self.fd, views if self.header else iovec.skip(views, HEADER_SIZE))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EBADFD:  # the interface was deleted
                raise
        return True

    def attach(self) -> None:
        """Take part in the interface's traffic again.  Raises OSError when it is gone."""
        if self._several and not self._attached:
            self._set_queue(IFF_ATTACH_QUEUE)
            self._attached = True

    def detach(self) -> None:
        """Let the host steer every frame to other queues, where the tap may have some."""
        if self._several and self._attached:
            self._attached = False
            try:
                self._set_queue(IFF_DETACH_QUEUE)
            except OSError:  # the interface is gone, as ``check`` tells
                return

    def check(self) -> None:
        """Raise OSError when the interface was deleted."""
        poll = select.poll()
        poll.register(self.fd, 0)
        if poll.poll(0):
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    def _set_queue(self, flag: int) -> None:
        fcntl.ioctl(self.fd, TUNSETQUEUE, _IFREQ.pack(b"", flag))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_CREATE = "try: sudo ip tuntap add {} mode tap user $USER"


def open_tap(name: str, option: str = "--net", *, queues: int = 1) -> Tap:
    """Attach to the tap ``name`` by one of ``queues`` in all.  Raises ConfigError, HostError.

    One that does not exist is not made, though root could: it would be connected to nothing.
    """
    value = f"tap={name}"
    if not 0 < len(name.encode()) < 16 or any(c in "/%:" or c.isspace() for c in name):
        raise ConfigError(option, value, "is no interface name (1 to 15 characters, no space, / : or %)")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{option} {value}: {DEVICE}: {error.strerror}; {_remedy(error)}") from error
    try:
        if not os.path.exists(f"/sys/class/net/{name}"):
            raise ConfigError(option, value, f"no such interface; {_CREATE.format(name)}")
        several = _has_several_queues(name)
        if queues > 1 and not several:
            problem = f"is no tap of several queues; {_CREATE.format(name)} multi_queue"
            raise ConfigError(option, f"{value},queues={queues}", problem)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if several else 0)
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        return Tap(fd, name, header=True, several=several)
    except OSError as error:
        os.close(fd)
        raise ConfigError(option, value, _attach_problem(error, name)) from error
    except ConfigError:
        os.close(fd)
        raise


def inherited_tap(fd: int, option: str = "--net") -> Tap:
    """The tap that ``fd``, open since this process began, is attached to.  Raises ConfigError."""
    value = f"fd={fd}"
    try:
        name, flags = _IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))
        if not flags & IFF_TAP or not flags & IFF_NO_PI:
            raise ConfigError(option, value, "must be a tap opened with IFF_TAP and IFF_NO_PI")
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        return Tap(
            fd,
            name.rstrip(b"\0").decode(errors="replace"),
            header=bool(flags & IFF_VNET_HDR),
            several=bool(flags & IFF_MULTI_QUEUE),
        )
    except (OSError, OverflowError, ValueError) as error:
        is_open = isinstance(error, OSError) and error.errno != errno.EBADF
        problem = "is not a tap with an interface" if is_open else "is not an open descriptor"
        raise ConfigError(option, value, problem) from error


def _has_several_queues(name: str) -> bool:
    """Whether the interface is a tap made for that; False for one that is no tap."""
    try:
        with open(f"/sys/class/net/{name}/tun_flags", encoding="ascii") as file:
            return bool(int(file.read(), 16) & IFF_MULTI_QUEUE)
    except OSError:
        return False


def _remedy(error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"needs read and write permission on {DEVICE}"
    return "try: modprobe tun"


def _attach_problem(error: OSError, name: str) -> str:
    match error.errno:
        case errno.EBUSY:
            return "is in use by another program"
        case errno.EPERM | errno.EACCES:
            return f"belongs to another user; {_CREATE.format(name)}"
        case errno.EINVAL:
            return "is not a tap interface"
    return f"cannot attach: {error.strerror}"
