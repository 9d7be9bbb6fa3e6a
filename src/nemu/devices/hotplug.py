"""Hot-plug controllers: how CPUs, memory and PCI devices come and go (ACPI 6.5, 5.6.6 and 6.3).

One controller has the slots of one kind.  Its page, apart from the descriptors of a kind that has some:

======  ==========  ==========================================================================
offset  register    meaning
======  ==========  ==========================================================================
0x000   EVENT       read-only; slot << 8 | notification of the oldest event, 0 when there is none
0x004   ACKNOWLEDGE the value read from EVENT, written back, takes that event away
0x008   EJECT       the guest has let go of the slot whose number is written
0x00C   OST_SLOT    slot, source event and status of an ``_OST`` evaluation (6.3.5); writing the
0x010   OST_EVENT   status reports it
0x014   OST_STATUS
0x400   STATE       read-only; one byte a slot, what its ``_STA`` returns: 0x0F or 0
0x800   DESCRIPTOR  read-only; 16 bytes a slot: base and size of a memory device
======  ==========  ==========================================================================

Reads have no side effect, so the page is memory to the guest; an event costs two exits (its
acknowledgement, and the one of the generic event device that tells of it).

Threat note: a guest may acknowledge what is not there, eject any slot number and report any
status.  An event that is not the oldest is not taken away; ``ejected`` is called for slots that are
occupied and removable only.  At most one event a slot is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import Enum, auto

from nemu.acpi import aml
from nemu.bus.regmap import RegisterMap, RegisterPage
from nemu.interfaces import Ost, Pages

STATE = 0x400
DESCRIPTORS = 0x800
MAX_SLOTS = 256
MAX_DESCRIPTORS = 64
PRESENT = 0x0F  # _STA: present, enabled, shown, functioning (6.3.7)
_DESCRIPTOR = struct.Struct("<QQ")

# 5.6.6: notifications that the guest's bus driver acts on
DEVICE_CHECK = 1
EJECT_REQUEST = 3


class Register(Enum):
    EVENT = auto()
    ACKNOWLEDGE = auto()
    EJECT = auto()
    OST_SLOT = auto()
    OST_EVENT = auto()
    OST_STATUS = auto()


REGISTERS = RegisterMap([(register, 4 * place, 4) for place, register in enumerate(Register)], 24)


class HotplugController:
    """A BusHandler over ``pages`` at ``gpa``; to the guest it is the device ``name`` (4 letters).

    ``targets`` are the ACPI paths of the slots' devices, by slot number.  ``notify`` raises the event of
    the generic event device.  ``ejected`` is told of a slot that the guest let go, ``reported`` of each
    ``_OST``; both in the thread of the access.
    """

    def __init__(
        self,
        name: str,
        pages: Pages,
        *,
        gpa: int,
        targets: Mapping[int, str],
        notify: Callable[[], None],
        ejected: Callable[[int], None],
        reported: Callable[[Ost], None],
    ) -> None:
        assert max(targets) < MAX_SLOTS
        self.name = name
        self._view = pages.view
        self._page = RegisterPage(REGISTERS, pages.view[:STATE])
        self._state = pages.view[STATE : STATE + MAX_SLOTS]
        self._descriptors = pages.view[DESCRIPTORS:]
        self._state[:] = bytes(MAX_SLOTS)
        self._descriptors[:] = bytes(len(self._descriptors))
        self._gpa = gpa
        self._targets = targets
        self._notify = notify
        self._ejected = ejected
        self._reported = reported
        self._removable: set[int] = set()
        self._pending: dict[int, int] = {}  # slot -> notification, the oldest first
        self.register_name = REGISTERS.name

    # --- what the machine does ------------------------------------------------------------------

    def occupy(self, slot: int, *, removable: bool = True) -> None:
        """Something is in ``slot`` from the start: no event."""
        self._state[slot] = PRESENT
        if removable:
            self._removable.add(slot)

    def describe(self, slot: int, base: int, size: int) -> None:
        """Where the memory in ``slot`` lies; before it is plugged."""
        _DESCRIPTOR.pack_into(self._descriptors, _DESCRIPTOR.size * slot, base, size)

    def plug(self, slot: int) -> None:
        """Something is in ``slot`` now: the guest is told."""
        self.occupy(slot)
        self._post(slot, DEVICE_CHECK)

    def request_removal(self, slot: int) -> None:
        """Ask the guest to let go of ``slot``; ``ejected`` follows when it does, which may be never."""
        self._post(slot, EJECT_REQUEST)

    def vacate(self, slot: int) -> None:
        """Nothing is in ``slot`` any more."""
        self._state[slot] = 0
        self._removable.discard(slot)
        if self._pending.pop(slot, None) is not None:
            self._show()

    def _post(self, slot: int, notification: int) -> None:
        self._pending.pop(slot, None)
        self._pending[slot] = notification
        self._show()
        self._notify()

    def _show(self) -> None:
        oldest = next(iter(self._pending.items()), None)
        self._page[Register.EVENT] = oldest[0] << 8 | oldest[1] if oldest else 0

    # --- what the guest does ----------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        return int.from_bytes(self._view[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        if offset < REGISTERS.size:
            self._page.write(offset, width, value, self._store)

    def _store(self, register: Register, value: int) -> None:
        match register:
            case Register.ACKNOWLEDGE:
                if value and value == self._page[Register.EVENT]:
                    del self._pending[value >> 8]
                    self._show()
            case Register.EJECT:
                if value in self._removable:
                    self.vacate(value)
                    self._ejected(value)
            case Register.OST_SLOT | Register.OST_EVENT:
                self._page[register] = value
            case Register.OST_STATUS:
                slot, event = self._page[Register.OST_SLOT], self._page[Register.OST_EVENT]
                if slot in self._targets:
                    self._reported(Ost(slot, event, value))

    # --- how the guest knows ----------------------------------------------------------------------

    @property
    def scan(self) -> bytes:
        """The term that acts on every pending event: for ``_EVT`` of the generic event device."""
        return aml.call(f"\\_SB.{self.name}.SCAN")

    def slot_terms(self, slot: int) -> tuple[bytes, ...]:
        """``_STA``, ``_EJ0`` and ``_OST`` of the device in ``slot``."""
        state = aml.method("_STA", 0, aml.return_(f"\\_SB.{self.name}.S{slot:03X}"))
        return (state, *self.eject_terms(slot))

    def eject_terms(self, slot: int) -> tuple[bytes, ...]:
        """``_EJ0`` and ``_OST`` of the device in ``slot``."""
        return (
            aml.method("_EJ0", 1, aml.store(slot, f"\\_SB.{self.name}.EJCT")),
            aml.method("_OST", 3, aml.call(f"\\_SB.{self.name}.REPO", slot, aml.arg(0), aml.arg(1))),
        )

    def aml(self) -> bytes:
        """The controller itself; the devices in its slots describe themselves by ``slot_terms``."""
        event, slot = aml.local(0), aml.arg(0)
        act = aml.call("NTFY", aml.shift_right(event, 8), aml.and_(event, 0xFF))
        return aml.device(
            self.name,
            aml.name("_HID", aml.eisaid("PNP0A06")),
            aml.name("_UID", aml.string(self.name)),
            aml.system_memory("REGS", self._gpa, REGISTERS.size),
            aml.dword_fields("REGS", "EVNT", "ACKN", "EJCT", "OSLT", "OEVT", "OSTA"),
            aml.system_memory("STAT", self._gpa + STATE, max(self._targets) + 1),
            aml.byte_fields("STAT", *(f"S{slot:03X}" for slot in range(max(self._targets) + 1))),
            aml.method(
                "NTFY",
                2,
                *(
                    aml.if_(aml.equal(slot, number), aml.notify(target, aml.arg(1)))
                    for number, target in self._targets.items()
                ),
            ),
            aml.method(
                "SCAN",
                0,
                aml.while_(aml.store("EVNT", event), aml.store(event, "ACKN"), act),
            ),
            aml.method(
                "REPO", 3, *(aml.store(aml.arg(n), name) for n, name in enumerate(("OSLT", "OEVT", "OSTA")))
            ),
        )


def memory_device(controller: HotplugController, slot: int, target: str, gpa: int) -> bytes:
    """PNP0C80 (9.11) in ``slot`` of a controller at ``gpa``: where it lies is read from its descriptor."""
    resources = (
        aml.store("BASE", "CMIN"),
        aml.store("SIZE", "CLEN"),
        aml.subtract(aml.add("BASE", "SIZE"), 1, "CMAX"),
        aml.return_("CBUF"),
    )
    return aml.device(
        target,
        aml.name("_HID", aml.eisaid("PNP0C80")),
        aml.name("_UID", slot),
        aml.system_memory("DESC", gpa + DESCRIPTORS + _DESCRIPTOR.size * slot, _DESCRIPTOR.size),
        aml.qword_fields("DESC", "BASE", "SIZE"),
        aml.name("CBUF", aml.resource_template(aml.qword_cacheable_memory(0, 1 << 32))),
        aml.create_qword_field("CBUF", 14, "CMIN"),
        aml.create_qword_field("CBUF", 22, "CMAX"),
        aml.create_qword_field("CBUF", 38, "CLEN"),
        aml.method("_CRS", 0, *resources),
        *controller.slot_terms(slot),
    )
