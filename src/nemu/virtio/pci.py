"""virtio over PCI, modern only (virtio 1.2, section 4.1).

BAR 0, 16 KiB; the first two pages are memory that the guest reads without an exit:

    0x0000  common configuration        0x1000  MSI-X table
    0x0200  device configuration        0x1800  MSI-X pending bits
    0x2000  notifications, 4 bytes a queue: an eventfd, no exit
    0x3000  ISR status: read and cleared, so plain MMIO

Threat: every register takes any value at any time.  Nothing is believed until DRIVER_OK, when the
queues are built and checked; a bad one, or a bad chain later, stops this device with
DEVICE_NEEDS_RESET.  The first of these is logged, and no other in the life of the machine, for a
guest can reset and offend in a loop.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from nemu.bus.regmap import RegisterMap, RegisterPage, ones
from nemu.errors import GuestError
from nemu.interfaces import Doorbell, Window
from nemu.pci.msix import MAX_VECTORS, MsixTable, MsixVector
from nemu.virtio.pci_cfg import ConfigAccess
from nemu.virtio.queue import Queue

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop, GuestMemory, MsiRouter, Pages
    from nemu.pci.host import HostBridge
    from nemu.virtio.device import VirtioDevice

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040  # 4.1.2.1
CLASS_CODES = {1: 0x020000, 2: 0x018000, 3: 0x078000}  # net: Ethernet; block: mass storage; console
CLASS_OTHER = 0xFF0000

BAR_SIZE = 0x4000
PAGES_SIZE = 0x2000
COMMON, DEVICE_CONFIG, MSIX_TABLE, MSIX_PENDING, NOTIFY, ISR = 0x0000, 0x0200, 0x1000, 0x1800, 0x2000, 0x3000
DEVICE_CONFIG_SIZE = MSIX_TABLE - DEVICE_CONFIG
NOTIFY_MULTIPLIER = 4

# 4.1.4: cfg_type of the vendor capabilities
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE = 1, 2, 3, 4
CAP_VENDOR = 0x09

# 2.1 device status
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED

# 6 feature bits of the transport
F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
TRANSPORT_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1

NO_VECTOR = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2


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


class VirtioPci:
    """A virtio device on PCI: the handler of BAR 0, and the device's Transport."""

    def __init__(
        self,
        device: VirtioDevice,
        host: HostBridge,
        slot: int,
        *,
        pages: Pages,
        memory: GuestMemory,
        loop: EventLoop,
        router: MsiRouter,
    ) -> None:
        self.device = device
        self.slot = slot
        self._memory = memory
        self._loop = loop
        self._view = pages.view
        self._page = RegisterPage(COMMON_MAP, pages.view[COMMON : COMMON + COMMON_MAP.size])
        self._features = device.features | TRANSPORT_FEATURES
        self._isr = 0
        self._active = False
        self._draining = False  # the device was told to let go and has I/O in flight
        self._resetting = False
        self._logged = False
        # One for each queue and one for configuration changes, as far as the table goes.
        count = min(len(device.queue_sizes) + 1, MAX_VECTORS)
        pages.view[MSIX_TABLE:] = bytes(PAGES_SIZE - MSIX_TABLE)
        self._msix = MsixTable(count, pages.view[MSIX_TABLE:MSIX_PENDING], pages.view[MSIX_PENDING:], router)
        self._doorbells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queue_sizes]
        self._to_power_on()
        self.function = host.add_function(
            slot,
            vendor=VENDOR_ID,
            device=DEVICE_ID_BASE + device.device_id,
            class_code=CLASS_CODES.get(device.device_id, CLASS_OTHER),
        )
        doorbells = tuple(
            Doorbell(NOTIFY + index * NOTIFY_MULTIPLIER, fd) for index, fd in enumerate(self._doorbells)
        )
        window = Window(device.name, BAR_SIZE, self, pages, doorbells)
        self.function.add_bar(window, host.allocate(BAR_SIZE))
        self._add_capabilities()

    def _add_capabilities(self) -> None:
        def capability(cfg_type: int, offset: int, length: int, extra: bytes = b"") -> None:
            # 4.1.4: cap_len, cfg_type, bar, id, padding[2], offset, length
            body = struct.pack("<BBBBHII", 16 + len(extra), cfg_type, 0, 0, 0, offset, length) + extra
            self.function.config.add_capability(CAP_VENDOR, body, f"virtio_cap{cfg_type}")

        capability(CAP_COMMON, COMMON, COMMON_MAP.size)
        capability(CAP_ISR, ISR, 1)
        capability(CAP_DEVICE, DEVICE_CONFIG, max(4, len(self.device.config)))
        notify_size = NOTIFY_MULTIPLIER * len(self._doorbells)
        capability(CAP_NOTIFY, NOTIFY, notify_size, struct.pack("<I", NOTIFY_MULTIPLIER))
        self.function.add_msix(self._msix, MSIX_TABLE, MSIX_PENDING)
        ConfigAccess(self.function, self, BAR_SIZE)

    # --- BusHandler -----------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        if offset == ISR:
            isr, self._isr = self._isr, 0
            return isr
        if offset + width <= PAGES_SIZE:  # only where no memory slot serves it
            return int.from_bytes(self._view[offset : offset + width], "little")
        return ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        if offset < COMMON_MAP.size:
            self._page.write(offset, width, value, self._store)
        elif DEVICE_CONFIG <= offset < DEVICE_CONFIG + len(self.device.config):
            self.device.write_config(offset - DEVICE_CONFIG, width, value)
            self._show_config()
        elif MSIX_TABLE <= offset < MSIX_TABLE + self._msix.size:
            self._msix.write(offset - MSIX_TABLE, width, value)
        elif NOTIFY <= offset < NOTIFY + NOTIFY_MULTIPLIER * len(self._doorbells):
            os.eventfd_write(self._doorbells[(offset - NOTIFY) // NOTIFY_MULTIPLIER], 1)

    def register_name(self, offset: int) -> str:
        if offset < COMMON_MAP.size:
            return COMMON_MAP.name(offset)
        if DEVICE_CONFIG <= offset < MSIX_TABLE:
            return f"config+{offset - DEVICE_CONFIG:#x}"
        if MSIX_TABLE <= offset < MSIX_PENDING:
            field = ("address", "address_high", "data", "control")[offset % 16 // 4]
            return f"msix{(offset - MSIX_TABLE) // 16}.{field}"
        if NOTIFY <= offset < ISR:
            return f"notify{(offset - NOTIFY) // NOTIFY_MULTIPLIER}"
        return "isr" if offset == ISR else f"{offset:#x}"

    # --- common configuration ----------------------------------------------------------------

    def _to_power_on(self) -> None:
        page = self._page
        for register in Reg:
            page[register] = 0
        self._driver_features = 0
        self._queues = [QueueSetup(size, size) for size in self.device.queue_sizes]
        page[Reg.NUM_QUEUES] = len(self._queues)
        page[Reg.CONFIG_MSIX_VECTOR] = NO_VECTOR
        page[Reg.DEVICE_FEATURE] = self._features & 0xFFFF_FFFF
        self._isr = 0
        self._show_queue()
        self._show_config()

    def _show_config(self) -> None:
        config = self.device.config
        self._view[DEVICE_CONFIG : DEVICE_CONFIG + len(config)] = config

    def _show_queue(self) -> None:
        """Put the selected queue into the page; a queue that does not exist has size 0."""
        page, selected = self._page, self._page[Reg.QUEUE_SELECT]
        queue = self._queues[selected] if selected < len(self._queues) else QueueSetup(0, 0)
        page[Reg.QUEUE_SIZE] = queue.size
        page[Reg.QUEUE_MSIX_VECTOR] = queue.vector
        page[Reg.QUEUE_ENABLE] = int(queue.enabled)
        page[Reg.QUEUE_NOTIFY_OFF] = selected if queue.max_size else 0
        page[Reg.QUEUE_DESC] = queue.desc
        page[Reg.QUEUE_DRIVER] = queue.driver
        page[Reg.QUEUE_DEVICE] = queue.device

    def _store(self, register: Reg, value: int) -> None:
        page = self._page
        match register:
            case Reg.DEVICE_STATUS:
                self._set_status(value)
            case Reg.DEVICE_FEATURE_SELECT:
                page[register] = value
                page[Reg.DEVICE_FEATURE] = (self._features >> 32 * value) & 0xFFFF_FFFF if value < 2 else 0
            case Reg.DRIVER_FEATURE_SELECT:
                page[register] = value
                page[Reg.DRIVER_FEATURE] = (
                    (self._driver_features >> 32 * value) & 0xFFFF_FFFF if value < 2 else 0
                )
            case Reg.DRIVER_FEATURE:
                self._set_driver_features(page[Reg.DRIVER_FEATURE_SELECT], value)
            case Reg.CONFIG_MSIX_VECTOR:
                page[register] = self._checked_vector(value)
            case Reg.QUEUE_SELECT:
                page[register] = value
                self._show_queue()
            case _:
                selected = page[Reg.QUEUE_SELECT]
                if selected < len(self._queues) and not self._active:
                    self._store_queue(self._queues[selected], register, value)
                    self._show_queue()

    def _set_driver_features(self, select: int, value: int) -> None:
        if select < 2 and not self._page[Reg.DEVICE_STATUS] & FEATURES_OK:
            kept = self._driver_features & ~(0xFFFF_FFFF << 32 * select)
            self._driver_features = kept | value << 32 * select
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

    def _checked_vector(self, value: int) -> int:
        return value if value < len(self._msix.vectors) else NO_VECTOR

    # --- life of the device -------------------------------------------------------------------

    def _set_status(self, value: int) -> None:
        status = self._page[Reg.DEVICE_STATUS]
        if value == 0:
            self._reset()
            return
        added = value & STATUS_BITS & ~status
        if added & FEATURES_OK:
            wanted = self._driver_features
            if wanted & ~self._features or not wanted & F_VERSION_1:
                added &= ~(FEATURES_OK | DRIVER_OK)
        if added & DRIVER_OK and not (status | added) & FEATURES_OK:
            added &= ~DRIVER_OK
        self._page[Reg.DEVICE_STATUS] = status | added
        if added & DRIVER_OK and not status & NEEDS_RESET:
            self._activate()

    def _activate(self) -> None:
        self._active = True
        try:
            queues = tuple(self._build_queue(setup) if setup.enabled else None for setup in self._queues)
            self.device.activate(self._driver_features, queues, self)
        except GuestError as error:
            self.stop(error)
            return
        for index, queue in enumerate(queues):
            if queue is not None and self._active:  # the device may have stopped itself already
                self._loop.add_reader(self._doorbells[index], partial(self._notified, index))

    def _build_queue(self, setup: QueueSetup) -> Queue:
        return Queue(
            self._memory,
            size=setup.size,
            desc=setup.desc,
            avail=setup.driver,
            used=setup.device,
            event_idx=bool(self._driver_features & F_EVENT_IDX),
            interrupt=self._interrupt(setup.vector),
            max_size=setup.max_size,
        )

    def _interrupt(self, vector: int) -> Callable[[], None]:
        """How a queue interrupts the driver."""
        if vector == NO_VECTOR:
            return self._raise_queue_isr
        line: MsixVector = self._msix.vectors[vector]
        return line.signal

    def _raise_queue_isr(self) -> None:
        self._isr |= ISR_QUEUE

    def _notified(self, index: int) -> None:
        try:
            os.eventfd_read(self._doorbells[index])
        except BlockingIOError:  # a reset came between the event and this call
            return
        try:
            self.device.notify(index)
        except GuestError as error:
            self.stop(error)

    def _reset(self) -> None:
        """The driver wrote 0.  It reads 0 only when no I/O of the device is in flight (4.1.4.3.1)."""
        self._resetting = True
        self._deactivate()

    def _deactivate(self) -> None:
        self._active = False
        for doorbell in self._doorbells:
            self._loop.remove_reader(doorbell)
        # A driver may reset in a loop, or reset a device that was stopped: one end is waited for.
        if not self._draining:
            self._draining = True
            self.device.deactivate(self._drained)

    def _drained(self) -> None:
        self._draining = False
        if self._resetting:
            self._resetting = False
            self._to_power_on()

    # --- Transport ------------------------------------------------------------------------------

    def config_changed(self) -> None:
        page = self._page
        # Odd steps would do as well: a driver that saw a part of the change sees another generation.
        page[Reg.CONFIG_GENERATION] = (page[Reg.CONFIG_GENERATION] + 1) & 0xFF
        self._show_config()
        page[Reg.CONFIG_GENERATION] = (page[Reg.CONFIG_GENERATION] + 1) & 0xFF
        self._interrupt_config()

    def stop(self, error: GuestError) -> None:
        if self._page[Reg.DEVICE_STATUS] & NEEDS_RESET:
            return
        if not self._logged:
            self._logged = True
            print(f"nemu: {self.device.name} stopped: {error}", file=sys.stderr)
        self._page[Reg.DEVICE_STATUS] |= NEEDS_RESET
        self._deactivate()
        self._interrupt_config()

    def _interrupt_config(self) -> None:
        vector = self._page[Reg.CONFIG_MSIX_VECTOR]
        if vector == NO_VECTOR:
            self._isr |= ISR_CONFIG
        else:
            self._msix.vectors[vector].signal()

    def close(self) -> None:
        """The machine ends: stop using guest RAM and give back every descriptor."""
        self._deactivate()
        self.device.close()
        self.function.close()
        for doorbell in self._doorbells:
            os.close(doorbell)
