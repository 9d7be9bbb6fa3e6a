"""A virtio device whose queues another process serves, by vhost-user.

Neither a request nor its completion passes through here: the driver's notifications go from its doorbell's
eventfd to the back end, and the back end's interrupts to the guest by KVM's irqfd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nemu.memory import GuestRam
from nemu.vhost.user.frontend import Frontend
from nemu.vhost.user.script import Activation
from nemu.virtio.common_config import F_EVENT_IDX, F_INDIRECT_DESC
from nemu.virtio.device import Transport, VirtioDevice
from nemu.virtio.queue import Queue

# 2.2: the feature bits of a device type
DEVICE_FEATURES = (1 << 24) - 1 | (1 << 64) - (1 << 50)
# The configuration fields that a driver may write, where the type has few; a back end may take a write to
# any other for an error, and end.
_WRITABLE = {
    1: range(0),
    2: range(32, 33),  # 5.2.4: writeback
    26: range(0),
}


class VhostUserDevice(VirtioDevice):
    """Type ``device_id`` (virtio 1.2, section 5) with ``queues`` queues of ``queue_size``.

    ``own`` are the fields of the configuration space that are ours and not the back end's: their offsets and
    bytes.  ``features`` are those of the device type that we can do, of which the back end's are offered,
    and ``own_features`` what we do ourselves.
    """

    def __init__(
        self,
        name: str,
        device_id: int,
        frontend: Frontend,
        ram: GuestRam,
        *,
        queues: int,
        queue_size: int,
        own: Mapping[int, bytes] | None = None,
        features: int = DEVICE_FEATURES,
        own_features: int = 0,
    ) -> None:
        self._own = own or {}
        super().__init__(name, self._merge(frontend.info.config))
        self.device_id = device_id
        self.queue_sizes = (queue_size,) * queues
        self.features = frontend.info.features & features & DEVICE_FEATURES | own_features
        self.ring_features = frontend.info.features & (F_INDIRECT_DESC | F_EVENT_IDX)
        self._frontend = frontend
        self._ram = ram
        self._transport: Transport | None = None
        frontend.user = self
        ram.watch(frontend.memory_changed)

    def _merge(self, config: bytes) -> bytes:
        merged = bytearray(config)
        for offset, field in self._own.items():
            merged[offset : offset + len(field)] = field
        return bytes(merged)

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._transport = transport
        active = Activation(features, queues, transport, self._ram)
        self.prepare(active)
        self._frontend.start(active)

    def prepare(self, active: Activation) -> None:
        """What a type has to add before a back end gets ``active``."""

    def serves(self, index: int) -> bool:
        return False

    def notify(self, index: int) -> None:
        """Never called: the back end hears the doorbells."""

    def deactivate(self, done: Callable[[], None]) -> None:
        self._transport = None
        self._frontend.stop(done)

    def write_config(self, offset: int, width: int, value: int) -> None:
        writable = _WRITABLE.get(self.device_id, range(len(self.config)))
        if offset in writable and offset + width - 1 in writable:
            self.config[offset : offset + width] = value.to_bytes(width, "little")
            self._frontend.write_config(offset, width, value)

    def config_read(self, config: bytes) -> None:
        """Frontend's User: the back end's configuration space has changed, or a new back end has its own."""
        merged = self._merge(config)
        if merged != self.config:
            self.config[:] = merged
            if self._transport:
                self._transport.config_changed()

    def close(self) -> None:
        self._ram.unwatch(self._frontend.memory_changed)
        self._frontend.user = None
