"""PCI devices that come and go on the root bus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nemu.plug import PlugError

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.pci.host import HostBridge
    from nemu.plug.cpus import Slots
    from nemu.virtio.device import VirtioDevice
    from nemu.virtio.pci import VirtioPci


class PciSlots:
    """The functions of bus 0.  ``make`` puts a device into a slot.

    ``leaving`` is told of a slot that the guest has let go, ``removed`` once no I/O of its device is under
    way any more, which may be at once.
    """

    def __init__(
        self, machine: Machine, host: HostBridge, make: Callable[[VirtioDevice, int], VirtioPci]
    ) -> None:
        self._machine = machine
        self._host = host
        self._make = make
        self._transports: dict[int, VirtioPci] = {}
        self.slots: Slots | None = None
        self.leaving: Callable[[int], None] = lambda slot: None
        self.removed: Callable[[int], None] = lambda slot: None

    def start_with(self, device: VirtioDevice, slot: int | None = None, *, removable: bool = True) -> int:
        """Put ``device`` into ``slot``, or the first free one, before the machine runs; gives the slot."""
        slot = self._add(device, slot)
        if self.slots:
            self.slots.occupy(slot, removable=removable)
        return slot

    def choose(self, slot: int | None = None) -> int:
        """A place for one more: ``slot`` if it is free, or the first one that is.  Raises PlugError."""
        if self.slots is None:
            raise PlugError("PCI devices cannot be plugged into this machine (--hotplug pci)")
        return self._choose(slot)

    def plug(self, device: VirtioDevice, slot: int) -> None:
        """Add ``device`` in ``slot``, out of ``choose``, and tell the guest."""
        assert self.slots
        self._add(device, slot)
        self.slots.plug(slot)

    def request_removal(self, slot: int) -> None:
        """Ask the guest to let go of the device in ``slot``."""
        if self.slots is None:
            raise PlugError("PCI devices cannot be removed from this machine (--hotplug pci)")
        if slot not in self._transports:
            raise PlugError(f"there is no device in slot {slot}")
        self.slots.request_removal(slot)

    def ejected(self, slot: int) -> None:
        """The guest has let go of it: nothing answers there any more."""
        transport = self._transports.pop(slot)
        self.leaving(slot)
        self._host.remove_function(slot)
        self._machine.devices = [
            entry for entry in self._machine.devices if entry[0] != transport.device.name
        ]
        transport.close(lambda: self.removed(slot))

    def close(self) -> None:
        """The machine ends."""
        while self._transports:
            self._transports.popitem()[1].close()

    def _choose(self, slot: int | None) -> int:
        if slot is None:
            slot = self._host.free_slot()
            if slot is None:
                raise PlugError("the bus is full: it has room for 31 devices in all")
        elif not self._host.is_free(slot):
            raise PlugError(
                f"slot {slot} is taken" if 0 <= slot < 32 else f"there is no slot {slot}, only 1 to 31"
            )
        return slot

    def _add(self, device: VirtioDevice, slot: int | None) -> int:
        slot = self._choose(slot)
        self._transports[slot] = self._make(device, slot)
        self._machine.devices.append((device.name, f"0000:00:{slot:02x}.0"))
        return slot
