"""Virtio queues that the host kernel serves itself (vhost), and the device in front of them.

A driver's kick wakes a thread of the kernel, and its interrupt comes from there: no byte and no
notification passes through this process.  Sources: include/uapi/linux/vhost.h, drivers/vhost of Linux.

Threat note: the kernel reaches only what its memory table names, which is guest RAM, and checks every
ring and descriptor itself; what it finds bad it tells by an eventfd, and the device stops.
"""

from __future__ import annotations

import fcntl
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from ctypes import c_uint64
from typing import TYPE_CHECKING

from nemu.errors import GuestError, HostError
from nemu.ioctl import Call, Handle, Ioctl, with_tail
from nemu.vhost import abi
from nemu.virtio.common_config import F_EVENT_IDX, F_INDIRECT_DESC
from nemu.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam, Region
    from nemu.virtio.device import Transport
    from nemu.virtio.queue import Queue

RINGS = 2  # of each descriptor: receive and transmit, of vhost-net and vhost-vsock alike


def open_device(path: str, module: str) -> int:
    """A descriptor of ``path``, the node of kernel module ``module``.  Raises HostError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "needs permission to read and write" if os.path.exists(path) else f"try: modprobe {module}"
        raise HostError(f"{path}: {error.strerror}; {remedy}") from error


class DataPlane(Handle):
    """One vhost descriptor, which it owns: RINGS queues of one machine after another.

    ``take``, then any number of ``run`` and ``pause``, then ``release``.  ``features`` are those that
    the kernel can serve; ``errors`` is an eventfd that is signalled when a driver broke a ring.
    """

    def __init__(self, fd: int, ioctl: Call = fcntl.ioctl) -> None:
        super().__init__(fd, ioctl)
        self.errors = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rings: dict[int, Queue] = {}
        self._running = False
        try:
            features = c_uint64()
            self.call(abi.VHOST_SET_OWNER)
            self.call(abi.VHOST_GET_FEATURES, features)
            self.features = features.value
            self.set_memory(())
        except BaseException:
            self.close()
            raise

    def take(self, features: int, queues: Sequence[Queue | None], ram: GuestRam) -> None:
        """Tell the kernel of a driver's rings; ``features`` are those of the driver and of the backend."""
        self.call(abi.VHOST_SET_FEATURES, c_uint64(features & self.features))
        self.set_memory(ram.regions)
        try:  # what an earlier driver did wrong
            os.eventfd_read(self.errors)
        except BlockingIOError:
            pass
        for index, queue in enumerate(queues):
            if queue:
                self._rings[index] = queue
                self._set_ring(index, queue, ram)

    def set_memory(self, regions: Sequence[Region]) -> None:
        """What of this process's memory the kernel may reach, as guest-physical addresses."""
        table = with_tail(abi.vhost_memory, abi.vhost_memory_region, len(regions))
        table.head.nregions = len(regions)
        table.entries[:] = [
            abi.vhost_memory_region(region.gpa, region.size, region.host_address) for region in regions
        ]
        self.call(abi.VHOST_SET_MEM_TABLE, table)

    def run(self) -> None:
        """Let the kernel serve the rings.  Raises HostError."""
        if not self._running:
            self._running = True
            self._connect(self._rings)
            for index, queue in self._rings.items():  # last: a kick that has come already counts
                self._set_file(abi.VHOST_SET_VRING_KICK, index, queue.kick)

    def pause(self) -> None:
        """Until ``run`` nothing moves, and no I/O touches guest RAM.  Raises HostError."""
        if self._running:
            self._running = False
            for index in self._rings:
                self._set_file(abi.VHOST_SET_VRING_KICK, index, abi.VHOST_FILE_UNBIND)
            self._disconnect(self._rings)

    def release(self) -> None:
        """Forget the driver: its rings, its interrupts, its memory."""
        try:
            self.pause()
            for index in self._rings:
                self._set_file(abi.VHOST_SET_VRING_CALL, index, abi.VHOST_FILE_UNBIND)
                self._set_file(abi.VHOST_SET_VRING_ERR, index, abi.VHOST_FILE_UNBIND)
            self.set_memory(())
        except HostError:
            super().close()  # whatever is wrong, nothing may reach memory that is not the guest's any more
        self._rings = {}

    def close(self) -> None:
        super().close()
        if self.errors >= 0:
            os.close(self.errors)
            self.errors = -1

    @abstractmethod
    def _connect(self, rings: Collection[int]) -> None:
        """Start the backend of ``rings``.  Raises HostError."""

    @abstractmethod
    def _disconnect(self, rings: Collection[int]) -> None:
        """Stop it; at return the kernel has no buffer of ``rings`` in its hands.  Raises HostError."""

    def _set_ring(self, index: int, queue: Queue, ram: GuestRam) -> None:
        size = queue.size
        self.call(abi.VHOST_SET_VRING_NUM, abi.vhost_vring_state(index, size))
        self.call(abi.VHOST_SET_VRING_BASE, abi.vhost_vring_state(index, 0))
        address = abi.vhost_vring_addr(
            index=index,
            desc_user_addr=ram.host_address(queue.desc, 16 * size),
            avail_user_addr=ram.host_address(queue.avail, 6 + 2 * size),
            used_user_addr=ram.host_address(queue.used, 6 + 8 * size),
        )
        self.call(abi.VHOST_SET_VRING_ADDR, address)
        self._set_file(abi.VHOST_SET_VRING_CALL, index, queue.call)
        self._set_file(abi.VHOST_SET_VRING_ERR, index, self.errors)

    def _set_file(self, number: Ioctl, index: int, fd: int) -> None:
        self.call(number, abi.vhost_vring_file(index, fd))


class VhostDevice(VirtioDevice):
    """A device whose queues 2 * N and 2 * N + 1 are rings 0 and 1 of ``planes[N]``."""

    def __init__(
        self, name: str, config: bytes, planes: Sequence[DataPlane], ram: GuestRam, loop: EventLoop
    ) -> None:
        super().__init__(name, config)
        self.ring_features = planes[0].features & (F_INDIRECT_DESC | F_EVENT_IDX)
        self._planes = planes
        self._ram = ram
        self._loop = loop
        self._transport: Transport | None = None
        ram.watch(self._memory_changed)

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._transport = transport

        def start() -> None:
            for number, plane in enumerate(self._planes):
                plane.take(features, queues[RINGS * number : RINGS * number + RINGS], self._ram)
                self._loop.add_reader(plane.errors, self._ring_broken)
            self._start(features)

        self._try(start)

    @abstractmethod
    def _start(self, features: int) -> None:
        """Let those planes run that the driver uses.  Raises HostError."""

    def serves(self, index: int) -> bool:
        return False

    def notify(self, index: int) -> None:
        """The kernel hears the kicks."""

    def deactivate(self, done: Callable[[], None]) -> None:
        self._transport = None
        for plane in self._planes:
            self._loop.remove_reader(plane.errors)
            plane.release()
        done()

    def close(self) -> None:
        self._ram.unwatch(self._memory_changed)

    def _ring_broken(self) -> None:
        if self._transport:
            self._transport.stop(GuestError("the host kernel found a bad ring or descriptor"))

    def _memory_changed(self) -> None:
        def tell() -> None:
            for plane in self._planes:
                plane.set_memory(self._ram.regions)

        self._try(tell)

    def _try(self, action: Callable[[], None]) -> None:
        """Run ``action`` if a driver is there; a HostError stops the device."""
        if self._transport:
            try:
                action()
            except HostError as error:
                self._transport.stop(error)
