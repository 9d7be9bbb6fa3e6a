"""virtio-net on a network port of the host (virtio 1.2, section 5.1).

Packets move by one readv or writev between the tap and guest RAM.  The port is read only while
the guest has given enough room for the largest packet; what it does not take waits, and is
dropped in the end, in the host's queue.

Threat note: the header in front of a packet is passed on unread; the host's kernel checks it
(passt never sees it).  A packet beyond MAX_PACKET is dropped here.  A flood from either side has
its turn in batches.  Buffers held for packets to come are bounded by the queue's size.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nemu import iovec
from nemu.backends.netdev import HEADER_SIZE, MAX_PACKET, NetBackend
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.virtio.device import BATCH, Transport, VirtioDevice, again, drain, guarded
from nemu.virtio.queue import Chain, Queue

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 256

# 5.1.3 feature bits; those of checksum and segmentation are the backend's
F_MAC = 1 << 5
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
S_LINK_UP = 1

_CONFIG = struct.Struct("<6sHHH")  # 5.1.4: mac, status, max_virtqueue_pairs, mtu
_STATUS_OFFSET = 6
_NUM_BUFFERS = struct.Struct("<H")  # 5.1.6, at offset 10 of the header
_NUM_BUFFERS_OFFSET = 10


def config_space(mac: bytes, pairs: int = 1) -> bytes:
    """5.1.4, of an interface whose link is up, with ``pairs`` of queues."""
    return _CONFIG.pack(mac, S_LINK_UP, pairs, 0)


def is_up(device: VirtioDevice) -> bool:
    """Whether the driver may see the link of ``device`` up."""
    return bool(device.config[_STATUS_OFFSET] & S_LINK_UP)


def take_down(device: VirtioDevice, port: str, error: OSError, warn: Callable[[str], None]) -> None:
    """Take the link down because ``port`` is lost; the caller tells the driver."""
    if is_up(device):
        warn(f"{device.name}: {port}: {error.strerror or error}; its link is down")
    device.config[_STATUS_OFFSET] = 0


def stable_mac(seed: str) -> bytes:
    """A locally administered unicast address that is the same whenever ``seed`` is."""
    return b"\x02\x6e" + struct.pack(">I", zlib.crc32(seed.encode()))


@dataclass(slots=True)
class _Room:
    """Receive buffers that are popped and wait for packets."""

    queue: Queue
    mergeable: bool
    chains: deque[Chain] = field(default_factory=deque)
    size: int = 0  # bytes in them

    def sufficient(self) -> bool:
        """Pop until any packet fits.  With no room left the driver is asked to notify."""
        while not self._enough():
            self.queue.disable_notifications()
            chain = self.queue.pop()
            if chain is None:
                if not self.queue.enable_notifications():
                    # A driver that has all of a small queue filled has no more to give.
                    return self.mergeable and self.queue.in_flight == self.queue.size
                continue
            size = iovec.size(chain.writable)
            if size < HEADER_SIZE:
                raise GuestError(f"a receive buffer of {size} bytes has no room for the header")
            self.chains.append(chain)
            self.size += size
        return True

    def views(self) -> iovec.Iovec:
        """Where the next packet goes."""
        views: iovec.Iovec = []
        room = 0
        for chain in self.chains:
            views += chain.writable
            room += iovec.size(chain.writable)
            if room >= MAX_PACKET or not self.mergeable:
                break
        return views

    def deliver(self, length: int) -> None:
        """The next ``length`` bytes are a packet: give its buffers to the driver."""
        first = self.chains[0].writable
        count = 0
        while length > 0:
            chain = self.chains.popleft()
            size = iovec.size(chain.writable)
            self.size -= size
            self.queue.push(chain.head, min(size, length))
            length -= size
            count += 1
        iovec.scatter(iovec.skip(first, _NUM_BUFFERS_OFFSET), _NUM_BUFFERS.pack(count))

    def _enough(self) -> bool:
        return self.size >= MAX_PACKET if self.mergeable else bool(self.chains)


@dataclass(slots=True)
class _Active:
    """``output`` is a packet that the port could not take yet."""

    room: _Room | None
    transmit: Queue | None
    transport: Transport
    output: Chain | None = None
    watching: bool = False  # for packets from the port


class VirtioNet(VirtioDevice):
    """A network interface with address ``mac`` (6 bytes) on ``backend``.

    ``warn`` gets one line for people when the port is lost; the guest sees its link go down.
    """

    device_id = 1
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(
        self, name: str, backend: NetBackend, mac: bytes, loop: EventLoop, warn: Callable[[str], None]
    ) -> None:
        super().__init__(name, config_space(mac))
        self.features = F_MAC | F_MRG_RXBUF | F_STATUS | backend.features
        self._backend = backend
        self._loop = loop
        self._warn = warn
        self._active: _Active | None = None

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        receive = queues[RECEIVE]
        room = _Room(receive, mergeable=bool(features & F_MRG_RXBUF)) if receive else None
        self._active = _Active(room, queues[TRANSMIT], transport)
        try:
            self._backend.set_features(features)
        except OSError as error:
            self._lose(error)
        self._receive()

    def notify(self, index: int) -> None:
        if index == RECEIVE:
            self._receive()
        elif index == TRANSMIT:
            self._transmit()

    def deactivate(self, done: Callable[[], None]) -> None:
        self._active = None
        self._stop_watching()
        done()

    def _readable(self) -> None:
        if self._active:
            guarded(self._active.transport, self._receive)

    def _writable(self) -> None:
        self._loop.remove_writer(self._backend.fileno())
        if self._active:
            guarded(self._active.transport, self._transmit)

    def _receive(self) -> None:
        """Move packets into the guest's buffers until one of both runs out."""
        active = self._active
        if active is None or active.room is None or not is_up(self):
            return
        for _ in range(BATCH):
            if not active.room.sufficient():
                self._watch(active, False)  # a notification brings us back
                break
            try:
                length = self._backend.receive(active.room.views())
            except OSError as error:
                self._lose(error)
                break
            if length == 0:
                self._watch(active, True)
                break
            active.room.deliver(length)
        else:
            again(self._loop, active.transport, self._receive)
        active.room.queue.flush()

    def _transmit(self) -> None:
        active = self._active
        if active is None or active.transmit is None:
            return
        if active.output:
            chain, active.output = active.output, None
            if not self._send(chain):
                return
        if drain(active.transmit, self._send):
            again(self._loop, active.transport, self._transmit)

    def _send(self, chain: Chain) -> bool:
        """Send one packet; False when the port is full, with the packet kept for later."""
        active = self._active
        assert active
        assert active.transmit
        size = iovec.size(chain.readable)
        if size < HEADER_SIZE:
            raise GuestError(f"a packet of {size} bytes has no header")
        if size <= MAX_PACKET and is_up(self):
            try:
                sent = self._backend.send(chain.readable)
            except OSError as error:
                self._lose(error)
                sent = True
            if not sent:
                active.output = chain
                self._loop.add_writer(self._backend.fileno(), self._writable)
                return False
        active.transmit.push(chain.head, 0)
        return True

    def _lose(self, error: OSError) -> None:
        """The port is gone: take the link down, and keep away from a descriptor that is always ready now."""
        self._stop_watching()
        take_down(self, self._backend.name, error, self._warn)
        if self._active:
            self._active.transport.config_changed()

    def _watch(self, active: _Active, wanted: bool) -> None:
        """Be called for packets from the port, or not."""
        if wanted != active.watching:
            active.watching = wanted
            if wanted:
                self._loop.add_reader(self._backend.fileno(), self._readable)
            else:
                self._loop.remove_reader(self._backend.fileno())

    def _stop_watching(self) -> None:
        self._loop.remove_reader(self._backend.fileno())
        self._loop.remove_writer(self._backend.fileno())
