"""virtio-net whose packets move between guest and tap in the host kernel (vhost-net).

One queue pair is one queue of the tap and one vhost descriptor.  A driver without VIRTIO_NET_F_MQ has the
first pair; the queues of the tap that nobody reads are detached, so that no flow is steered to them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from nemu.backends.links import LinkWatch
from nemu.errors import HostError
from nemu.ioctl import Call
from nemu.vhost import abi
from nemu.vhost.kernel import RINGS, DataPlane, VhostDevice, open_device
from nemu.virtio.net import F_MAC, F_MRG_RXBUF, F_STATUS, QUEUE_SIZE, config_space, is_up, take_down
from nemu.virtio.net_control import F_CTRL_VQ, F_MQ, VQ_PAIRS_SET, Commands, ControlQueue
from nemu.virtio.net_control import QUEUE_SIZE as CONTROL_SIZE

if TYPE_CHECKING:
    from nemu.backends.tap import Tap
    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam
    from nemu.virtio.device import Transport
    from nemu.virtio.queue import Queue

DEVICE = "/dev/vhost-net"


class NetPlane(DataPlane):
    """A vhost-net descriptor ``fd`` and the queue of a tap that it serves."""

    def __init__(self, fd: int, tap: Tap, ioctl: Call = fcntl.ioctl) -> None:
        super().__init__(fd, ioctl)
        self.tap = tap
        try:
            self._disconnect(range(RINGS))  # a vhost descriptor of another kind shows itself here
        except HostError:
            self.close()
            raise

    def _connect(self, rings: Collection[int]) -> None:
        try:
            self.tap.attach()
        except OSError as error:
            raise HostError(f"{self.tap.name}: cannot attach a queue: {error.strerror}") from error
        self._set_backend(rings, self.tap.fd)

    def _disconnect(self, rings: Collection[int]) -> None:
        self._set_backend(rings, abi.VHOST_FILE_UNBIND)
        self.tap.detach()

    def _set_backend(self, rings: Collection[int], fd: int) -> None:
        for index in rings:
            self.call(abi.VHOST_NET_SET_BACKEND, abi.vhost_vring_file(index, fd))


def open_planes(taps: Sequence[Tap], fds: Sequence[int]) -> list[NetPlane]:
    """A vhost-net descriptor for each queue of a tap: those in ``fds``, or new ones.  Raises HostError.

    Then none of them is open any more.
    """
    planes: list[NetPlane] = []
    try:
        for number, tap in enumerate(taps):
            planes.append(NetPlane(fds[number] if fds else open_device(DEVICE, "vhost_net"), tap))
    except BaseException:
        for plane in planes:
            plane.close()
        for fd in fds[len(planes) + 1 :]:  # the one that failed is closed already
            os.close(fd)
        raise
    return planes


class VhostNet(VhostDevice):
    """A network interface with address ``mac`` (6 bytes) on the taps of ``planes``, queues of one interface.

    ``warn`` gets one line for people when the tap is lost; the guest sees its link go down.
    """

    device_id = 1

    def __init__(
        self,
        name: str,
        planes: Sequence[NetPlane],
        mac: bytes,
        *,
        ram: GuestRam,
        loop: EventLoop,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(name, config_space(mac, len(planes)), planes, ram, loop)
        self._tap = planes[0].tap
        self._warn = warn
        self._links = LinkWatch()
        self._control: ControlQueue | None = None
        self._control_index = -1
        self.queue_sizes = (QUEUE_SIZE,) * (RINGS * len(planes))
        self.features = F_MAC | F_STATUS | self._tap.features | planes[0].features & F_MRG_RXBUF
        if len(planes) > 1:
            self.queue_sizes += (CONTROL_SIZE,)
            self.features |= F_CTRL_VQ | F_MQ

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        pairs = len(self._planes) if features & F_MQ else 1
        # 5.1.2: the control queue comes behind those that the driver may use
        self._control_index = RINGS * pairs if features & F_CTRL_VQ else -1
        self._loop.add_reader(self._links.fileno(), self._link_changed)
        header = 0 if self._tap.header else 1 << abi.VHOST_NET_F_VIRTIO_NET_HDR
        super().activate(features | header, queues[: RINGS * pairs], transport)
        control = queues[self._control_index] if features & F_CTRL_VQ else None
        if control and self._transport:
            commands: Commands = {VQ_PAIRS_SET: self._pairs_set} if features & F_MQ else {}
            self._control = ControlQueue(control, commands, self._loop, transport)

    def serves(self, index: int) -> bool:
        return index == self._control_index

    def notify(self, index: int) -> None:
        if self._control and index == self._control_index:
            self._control.serve()

    def deactivate(self, done: Callable[[], None]) -> None:
        self._loop.remove_reader(self._links.fileno())
        if self._control:
            self._control.close()
            self._control = None
        super().deactivate(done)

    def close(self) -> None:
        super().close()
        self._links.close()

    def _start(self, features: int) -> None:
        try:
            self._tap.set_features(features)
        except OSError as error:
            self._lose(error)
        self._use(1)

    def _pairs_set(self, data: bytes) -> bool:
        count = int.from_bytes(data, "little")
        if len(data) != 2 or not 1 <= count <= len(self._planes):
            return False
        self._use(count)
        return True

    def _use(self, pairs: int) -> None:
        """Move packets through the first ``pairs`` of queues."""
        for number, plane in enumerate(self._planes):
            if number < pairs and is_up(self):
                plane.run()
            else:
                plane.pause()

    def _link_changed(self) -> None:
        self._links.clear()
        if is_up(self):
            self._try(self._check_link)

    def _check_link(self) -> None:
        try:
            self._tap.check()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        take_down(self, self._tap.name, error, self._warn)
        self._use(0)
        if self._transport:
            self._transport.config_changed()
