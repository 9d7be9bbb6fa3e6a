"""What clients are told without having asked (qapi/run-state.json, machine.json of QEMU)."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from nemu.qmp.schema import Nothing, dump, load

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop, Timer


class Cause(Enum):
    """Why a machine shuts down or is reset (ShutdownCause)."""

    HOST_ERROR = "host-error"
    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_QMP_SYSTEM_RESET = "host-qmp-system-reset"
    HOST_SIGNAL = "host-signal"
    HOST_UI = "host-ui"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"


class PanicAction(Enum):
    """What follows a panic (GuestPanicAction)."""

    POWEROFF = "poweroff"
    RUN = "run"


class WatchdogAction(Enum):
    """What follows when the guest did not feed its watchdog (WatchdogAction)."""

    RESET = "reset"
    POWEROFF = "poweroff"
    PAUSE = "pause"
    NONE = "none"


class EndData(NamedTuple):
    """Of SHUTDOWN and RESET."""

    guest: Annotated[bool, "the guest asked for it"]
    reason: Annotated[Cause, "who or what did"]


class PanicData(NamedTuple):
    action: Annotated[PanicAction, "what nemu does then"]


class WatchdogData(NamedTuple):
    action: Annotated[WatchdogAction, "what nemu does then"]


class BalloonData(NamedTuple):
    actual: Annotated[int, "bytes of memory that the guest has now"]


class DeletedData(NamedTuple):
    path: Annotated[str, "its object"]
    device: Annotated[str | None, "its name, where it had one"] = None


class SlotType(Enum):
    """ACPISlotType."""

    DIMM = "DIMM"
    CPU = "CPU"


class OstInfo(NamedTuple):
    """ACPIOSTInfo."""

    slot: Annotated[str, "number of the slot"]
    slot_type: Annotated[SlotType, "what goes into it"]
    source: Annotated[int, "what the guest answers: 1 an insertion, 3 the request to let go"]
    status: Annotated[int, "0 for success; see ACPI 6.3.5"]
    device: Annotated[str | None, "name of what is in it"] = None


class OstData(NamedTuple):
    info: Annotated[OstInfo, "what the guest says"]


class MemUnplugData(NamedTuple):
    device: Annotated[str, "the memory device"]
    msg: Annotated[str, "why, in words"]


class Event(NamedTuple):
    """``seconds`` is the least time between two of them; of more the last one is sent then."""

    data: Any
    doc: str
    seconds: float = 0.0


# Rate limits as in QEMU, for what a guest can cause as often as it likes.
EVENTS = {
    "SHUTDOWN": Event(EndData, "The machine has ended, and nemu is about to."),
    "RESET": Event(EndData, "The machine starts anew."),
    "POWERDOWN": Event(Nothing, "Its power button was pressed."),
    "STOP": Event(Nothing, "Its CPUs were stopped."),
    "RESUME": Event(Nothing, "Its CPUs run."),
    "GUEST_PANICKED": Event(PanicData, "The guest's kernel is dead."),
    "GUEST_CRASHLOADED": Event(PanicData, "The guest's kernel panicked and starts its crash kernel."),
    "DEVICE_DELETED": Event(DeletedData, "The guest has let go of a device, and it is gone."),
    "DEVICE_UNPLUG_GUEST_ERROR": Event(DeletedData, "The guest does not let go of a device."),
    "MEM_UNPLUG_ERROR": Event(MemUnplugData, "The guest does not let go of a memory device."),
    "ACPI_DEVICE_OST": Event(OstData, "What the guest says of a CPU or memory device that comes or goes."),
    "WATCHDOG": Event(WatchdogData, "The guest did not feed its watchdog.", seconds=1.0),
    "BALLOON_CHANGE": Event(BalloonData, "The guest gave memory back, or took it.", seconds=1.0),
}


def message(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The event ``name`` with ``data``, of now.  QmpError for data that it does not have."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    text: dict[str, Any] = {
        "timestamp": {"seconds": seconds, "microseconds": nanoseconds // 1000},
        "event": name,
    }
    if members := dump(load(EVENTS[name].data, data)):
        text["data"] = members
    return text


class Throttle:
    """Holds events back that come too fast; ``send`` gets the others at once."""

    def __init__(self, loop: EventLoop, send: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._send = send
        self._timers: dict[str, Timer] = {}
        self._late: dict[str, dict[str, Any]] = {}

    def put(self, name: str, data: dict[str, Any]) -> None:
        """The event ``name`` happened now."""
        text = message(name, data)
        if name in self._timers:
            self._late[name] = text
            return
        self._send(text)
        self._hold(name)

    def close(self) -> None:
        """What is held back is dropped."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._late.clear()

    def _hold(self, name: str) -> None:
        if seconds := EVENTS[name].seconds:
            self._timers[name] = self._loop.call_later(seconds, lambda: self._expired(name))

    def _expired(self, name: str) -> None:
        del self._timers[name]
        if (text := self._late.pop(name, None)) is not None:
            self._send(text)
            self._hold(name)
