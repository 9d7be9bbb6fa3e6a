"""The common configuration structure of virtio over PCI (virtio 1.2, section 4.1.4.3).

What the driver writes here is remembered and shown, and believed by nobody: the queues are
built, and checked, when the driver is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from nemu.bus.regmap import RegisterMap, RegisterPage

# 2.1 device status
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED

# 6 feature bits of the transport
F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
TRANSPORT_FEATURES = F_VERSION_1

NO_VECTOR = 0xFFFF


class Reg(Enum):
    """4.1.4.3 common configuration structure."""

    DEVICE_FEATURE_SELECT = auto()
    DEVICE_FEATURE = auto()
    DRIVER_FEATURE_SELECT = auto()
    DRIVER_FEATURE = auto()
    CONFIG_MSIX_VECTOR = auto()
    NUM_QUEUES = auto()
    DEVICE_STATUS = auto()
    CONFIG_GENERATION = auto()
    QUEUE_SELECT = auto()
    QUEUE_SIZE = auto()
    QUEUE_MSIX_VECTOR = auto()
    QUEUE_ENABLE = auto()
    QUEUE_NOTIFY_OFF = auto()
    QUEUE_DESC = auto()
    QUEUE_DRIVER = auto()
    QUEUE_DEVICE = auto()


COMMON_MAP = RegisterMap(
    [
        (Reg.DEVICE_FEATURE_SELECT, 0x00, 4),
        (Reg.DEVICE_FEATURE, 0x04, 4),
        (Reg.DRIVER_FEATURE_SELECT, 0x08, 4),
        (Reg.DRIVER_FEATURE, 0x0C, 4),
        (Reg.CONFIG_MSIX_VECTOR, 0x10, 2),
        (Reg.NUM_QUEUES, 0x12, 2),
        (Reg.DEVICE_STATUS, 0x14, 1),
        (Reg.CONFIG_GENERATION, 0x15, 1),
        (Reg.QUEUE_SELECT, 0x16, 2),
        (Reg.QUEUE_SIZE, 0x18, 2),
        (Reg.QUEUE_MSIX_VECTOR, 0x1A, 2),
        (Reg.QUEUE_ENABLE, 0x1C, 2),
        (Reg.QUEUE_NOTIFY_OFF, 0x1E, 2),
        (Reg.QUEUE_DESC, 0x20, 8),
        (Reg.QUEUE_DRIVER, 0x28, 8),
        (Reg.QUEUE_DEVICE, 0x30, 8),
    ],
    size=0x38,
)


@dataclass(slots=True)
class QueueSetup:
    """What the driver wrote about one queue, not yet believed."""

    max_size: int
    size: int
    vector: int = NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0


class CommonConfig:
    """The registers in ``view``, for a device with ``features`` and ``queue_sizes`` and ``vectors`` of MSI-X.

    ``status_written`` gets each value that the driver writes to the device status.  While ``active``
    the queues' registers do not change any more.
    """

    def __init__(
        self,
        view: memoryview,
        *,
        features: int,
        queue_sizes: Sequence[int],
        vectors: int,
        status_written: Callable[[int], None],
    ) -> None:
        self._page = RegisterPage(COMMON_MAP, view)
        self._features = features | TRANSPORT_FEATURES
        self._queue_sizes = tuple(queue_sizes)
        self._vectors = vectors
        self._status_written = status_written
        self.active = False
        self.power_on()

    def power_on(self) -> None:
        """Every register as after power-on, the status last: a driver may be waiting for its 0."""
        page = self._page
        for register in Reg:
            if register is not Reg.DEVICE_STATUS:
                page[register] = 0
        self.driver_features = 0
        self.queues = [QueueSetup(size, size) for size in self._queue_sizes]
        page[Reg.NUM_QUEUES] = len(self.queues)
        page[Reg.CONFIG_MSIX_VECTOR] = NO_VECTOR
        page[Reg.DEVICE_FEATURE] = self._features & 0xFFFF_FFFF
        self._show_queue()
        page[Reg.DEVICE_STATUS] = 0

    @property
    def status(self) -> int:
        return self._page[Reg.DEVICE_STATUS]

    @status.setter
    def status(self, value: int) -> None:
        self._page[Reg.DEVICE_STATUS] = value

    @property
    def config_vector(self) -> int:
        """The vector for configuration changes, or NO_VECTOR."""
        return self._page[Reg.CONFIG_MSIX_VECTOR]

    def next_generation(self) -> None:
        self._page[Reg.CONFIG_GENERATION] = (self._page[Reg.CONFIG_GENERATION] + 1) & 0xFF

    def negotiate(self, value: int) -> int:
        """Take the status bits of ``value`` that the driver may set now (3.1.1); gives those that are new."""
        added = value & STATUS_BITS & ~self.status
        if added & FEATURES_OK:
            wanted = self.driver_features
            if wanted & ~self._features or not wanted & F_VERSION_1:
                added &= ~FEATURES_OK
        if not (self.status | added) & FEATURES_OK or self.status & NEEDS_RESET:
            added &= ~DRIVER_OK
        self.status |= added
        return added

    def write(self, offset: int, width: int, value: int) -> None:
        self._page.write(offset, width, value, self._store)

    def _store(self, register: Reg, value: int) -> None:
        page = self._page
        match register:
            case Reg.DEVICE_STATUS:
                self._status_written(value)
            case Reg.DEVICE_FEATURE_SELECT:
                page[register] = value
                page[Reg.DEVICE_FEATURE] = _half(self._features, value)
            case Reg.DRIVER_FEATURE_SELECT:
                page[register] = value
                page[Reg.DRIVER_FEATURE] = _half(self.driver_features, value)
            case Reg.DRIVER_FEATURE:
                self._set_driver_features(page[Reg.DRIVER_FEATURE_SELECT], value)
            case Reg.CONFIG_MSIX_VECTOR:
                page[register] = self._checked_vector(value)
            case Reg.QUEUE_SELECT:
                page[register] = value
                self._show_queue()
            case _:
                selected = page[Reg.QUEUE_SELECT]
                if selected < len(self.queues) and not self.active:
                    self._store_queue(self.queues[selected], register, value)
                    self._show_queue()

    def _set_driver_features(self, select: int, value: int) -> None:
        if select < 2 and not self.status & FEATURES_OK:
            kept = self.driver_features & ~(0xFFFF_FFFF << 32 * select)
            self.driver_features = kept | value << 32 * select
            self._page[Reg.DRIVER_FEATURE] = value

    def _store_queue(self, queue: QueueSetup, register: Reg, value: int) -> None:
        match register:
            case Reg.QUEUE_SIZE:
                queue.size = value
            case Reg.QUEUE_MSIX_VECTOR:
                queue.vector = self._checked_vector(value)
            case Reg.QUEUE_ENABLE:
                queue.enabled = queue.enabled or value == 1  # 4.1.4.3.2: the driver never writes 0
            case Reg.QUEUE_DESC:
                queue.desc = value
            case Reg.QUEUE_DRIVER:
                queue.driver = value
            case Reg.QUEUE_DEVICE:
                queue.device = value

    def _show_queue(self) -> None:
        """Put the selected queue into the page; a queue that does not exist has size 0."""
        page, selected = self._page, self._page[Reg.QUEUE_SELECT]
        queue = self.queues[selected] if selected < len(self.queues) else QueueSetup(0, 0)
        page[Reg.QUEUE_SIZE] = queue.size
        page[Reg.QUEUE_MSIX_VECTOR] = queue.vector
        page[Reg.QUEUE_ENABLE] = int(queue.enabled)
        page[Reg.QUEUE_NOTIFY_OFF] = selected if queue.max_size else 0
        page[Reg.QUEUE_DESC] = queue.desc
        page[Reg.QUEUE_DRIVER] = queue.driver
        page[Reg.QUEUE_DEVICE] = queue.device

    def _checked_vector(self, value: int) -> int:
        return value if value < self._vectors else NO_VECTOR


def _half(features: int, select: int) -> int:
    """Feature bits 32 * select to 32 * select + 31."""
    return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0
