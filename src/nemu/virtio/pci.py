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
from functools import partial
from typing import TYPE_CHECKING

from nemu.bus.regmap import ones
from nemu.errors import GuestError, HostError
from nemu.interfaces import Doorbell, Window
from nemu.pci.msix import MAX_VECTORS, MsixTable, MsixVector
from nemu.virtio.common_config import (
    COMMON_MAP,
    DRIVER_OK,
    F_EVENT_IDX,
    NEEDS_RESET,
    NO_VECTOR,
    CommonConfig,
    QueueSetup,
)
from nemu.virtio.pci_cfg import ConfigAccess
from nemu.virtio.queue import Queue

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop, GuestMemory, MsiRouter, Pages
    from nemu.pci.host import HostBridge
    from nemu.virtio.device import VirtioDevice

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040  # 4.1.2.1
# net: Ethernet; block: mass storage; console; SCSI controller
CLASS_CODES = {1: 0x020000, 2: 0x018000, 3: 0x078000, 8: 0x010000}
CLASS_OTHER = 0xFF0000

BAR_SIZE = 0x4000
PAGES_SIZE = 0x2000
COMMON, DEVICE_CONFIG, MSIX_TABLE, MSIX_PENDING, NOTIFY, ISR = 0x0000, 0x0200, 0x1000, 0x1800, 0x2000, 0x3000
NOTIFY_MULTIPLIER = 4

# 4.1.4: cfg_type of the vendor capabilities
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE = 1, 2, 3, 4
CAP_VENDOR = 0x09

ISR_QUEUE, ISR_CONFIG = 1, 2


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
        self._isr = 0
        self._draining = False  # the device was told to let go and has I/O in flight
        self._closed: Callable[[], None] | None = None
        self._resetting = False
        self._logged = False
        # One for each queue and one for configuration changes, as far as the table goes.
        count = min(len(device.queue_sizes) + 1, MAX_VECTORS)
        pages.view[MSIX_TABLE:] = bytes(PAGES_SIZE - MSIX_TABLE)
        self._msix = MsixTable(count, pages.view[MSIX_TABLE:MSIX_PENDING], pages.view[MSIX_PENDING:], router)
        self._doorbells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queue_sizes]
        self._common = CommonConfig(
            pages.view[COMMON : COMMON + COMMON_MAP.size],
            features=device.features | device.ring_features,
            queue_sizes=device.queue_sizes,
            vectors=count,
            status_written=self._set_status,
        )
        self._show_config()
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
        self.function.add_bar(window, host.allocate(slot, BAR_SIZE))
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
            self._common.write(offset, width, value)
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

    def _show_config(self) -> None:
        config = self.device.config
        self._view[DEVICE_CONFIG : DEVICE_CONFIG + len(config)] = config

    # --- life of the device -------------------------------------------------------------------

    def _set_status(self, value: int) -> None:
        """The driver wrote ``value``; while a reset waits for I/O in flight nothing else counts."""
        if value == 0:
            self._resetting = True
            self._deactivate()
        elif not self._resetting and self._common.negotiate(value) & DRIVER_OK:
            self._activate()

    def _activate(self) -> None:
        common = self._common
        common.active = True
        try:
            queues = tuple(
                self._build_queue(index, setup) if setup.enabled else None
                for index, setup in enumerate(common.queues)
            )
            self.device.activate(common.driver_features, queues, self)
        except GuestError as error:
            self.stop(error)
            return
        for index, queue in enumerate(queues):
            # The device may have stopped itself already.
            if queue is not None and common.active and self.device.serves(index):
                self._loop.add_reader(self._doorbells[index], partial(self._notified, index))

    def _build_queue(self, index: int, setup: QueueSetup) -> Queue:
        return Queue(
            self._memory,
            size=setup.size,
            desc=setup.desc,
            avail=setup.driver,
            used=setup.device,
            event_idx=bool(self._common.driver_features & F_EVENT_IDX),
            interrupt=self._interrupt(setup.vector),
            max_size=setup.max_size,
            kick=self._doorbells[index],
            call=-1 if setup.vector == NO_VECTOR else self._msix.vectors[setup.vector].eventfd,
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

    def _deactivate(self) -> None:
        self._common.active = False
        for doorbell in self._doorbells:
            self._loop.remove_reader(doorbell)
        # A driver may reset in a loop, or reset a device that was stopped: one end is waited for.
        if not self._draining:
            self._draining = True
            self.device.deactivate(self._drained)

    def _drained(self) -> None:
        self._draining = False
        if self._closed:
            self._closed()
        elif self._resetting:
            # Only now does the driver read 0: no I/O touches its memory any more (4.1.4.3.1).
            self._resetting = False
            self._isr = 0
            self._show_config()
            self._common.power_on()

    # --- Transport ------------------------------------------------------------------------------

    def config_changed(self) -> None:
        # Twice: a driver that saw a part of the change sees another generation than before it.
        self._common.next_generation()
        self._show_config()
        self._common.next_generation()
        self._interrupt_config()

    def stop(self, error: GuestError | HostError) -> None:
        if self._common.status & NEEDS_RESET:
            return
        if not self._logged:
            self._logged = True
            print(f"nemu: {self.device.name} stopped: {error}", file=sys.stderr)
        self._common.status |= NEEDS_RESET
        self._deactivate()
        self._interrupt_config()

    def _interrupt_config(self) -> None:
        vector = self._common.config_vector
        if vector == NO_VECTOR:
            self._isr |= ISR_CONFIG
        else:
            self._msix.vectors[vector].signal()

    def close(self, closed: Callable[[], None] = lambda: None) -> None:
        """The machine ends, or the device leaves it: give back every descriptor.

        ``closed`` is called once no I/O touches guest RAM any more, maybe at once.
        """
        self._closed = closed
        self._deactivate()
        self.device.close()
        self.function.close()
        for doorbell in self._doorbells:
            os.close(doorbell)
