"""Whether the machine runs, and how it is made to run, stop, start anew and end."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from nemu.machine import RunState
from nemu.qmp.registry import Call, command

_NO_UUID = "00000000-0000-0000-0000-000000000000"  # as QEMU says of a machine without one


class StatusInfo(NamedTuple):
    running: Annotated[bool, "its CPUs run"]
    status: Annotated[RunState, "its state"]


class NameInfo(NamedTuple):
    name: Annotated[str, "the name, as nemu ps shows it"]


class UuidInfo(NamedTuple):
    UUID: Annotated[str, "zeros: a machine has none yet"]


@command("query-status", oob=True)
def query_status(call: Call) -> StatusInfo:
    """Whether the machine runs."""
    state = call.session.machine.state
    return StatusInfo(state is RunState.RUNNING, state)


@command("query-name", oob=True)
def query_name(call: Call) -> NameInfo:
    """What the machine is called."""
    return NameInfo(call.session.name)


@command("query-uuid")
def query_uuid(call: Call) -> UuidInfo:
    """The machine's UUID."""
    return UuidInfo(_NO_UUID)


@command("stop", oob=True)
def stop(call: Call) -> None:
    """Stop the CPUs and the guest's clocks."""
    call.session.pause()


@command("cont", oob=True)
def cont(call: Call) -> None:
    """Let the CPUs go on, or begin after --start paused."""
    call.session.resume()


@command("system_reset")
def system_reset(call: Call) -> None:
    """Start the machine anew, as a reset button does; one whose CPUs are stopped does not begin."""
    call.session.reset()


@command("system_powerdown")
def system_powerdown(call: Call) -> None:
    """Press the power button: ask the guest to shut down."""
    call.session.power_down()


@command("quit", oob=True)
def quit_(call: Call) -> None:
    """End the machine and nemu at once."""
    call.session.quit()


@command("inject-nmi")
def inject_nmi(call: Call) -> None:
    """Send a non-maskable interrupt to every CPU."""
    call.session.machine.inject_nmi()
