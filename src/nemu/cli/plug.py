"""``nemu plug``, ``unplug`` and ``resize``: what a running machine has is changed."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nemu import syntax
from nemu.cli import complain
from nemu.cli.running import add_machine, client
from nemu.errors import ConfigError, HostError

if TYPE_CHECKING:
    from nemu.qmp.client import QmpClient

GRACE = 30.0  # seconds that a guest gets to let go
KINDS = ("disk", "net", "vhost-user")

_PLUG = """\
Plug a device into a running machine, in the words of nemu run, and print its name. The machine must have
been started with --hotplug pci (or cpu,memory,pci)."""
_UNPLUG = """\
Ask a machine's guest to let go of devices, and wait for it."""
_RESIZE = """\
Give a running machine more or fewer CPUs or more or less memory, within the max of --cpus and --memory."""


def register(subparsers: Any, name: str) -> None:
    """Add the command ``name``."""
    about = {
        "plug": ("plug a device into a running machine", _PLUG),
        "unplug": ("take devices out of a running machine", _UNPLUG),
        "resize": ("give a running machine more or fewer CPUs, or memory", _RESIZE),
    }
    help_line, description = about[name]
    parser = subparsers.add_parser(name, help=help_line, description=description)
    add_machine(parser)
    if name == "plug":
        for kind in KINDS:
            parser.add_argument(f"--{kind}", metavar="VALUE", action="append", default=[], help="as nemu run")
        parser.add_argument("--rng", action="store_true", help="an entropy device")
        parser.set_defaults(run=plug)
    elif name == "unplug":
        parser.add_argument("names", metavar="NAME", nargs="+", help="as nemu plug prints it")
        parser.set_defaults(run=unplug)
    else:
        parser.add_argument("--cpus", metavar="N", help="how many there shall be")
        parser.add_argument("--memory", metavar="SIZE", help="how much there shall be, as for nemu run")
        parser.set_defaults(run=resize)


def plug(arguments: argparse.Namespace) -> int:
    """Print the name of each."""
    wanted = [(kind, value) for kind in KINDS for value in getattr(arguments, kind.replace("-", "_"))]
    wanted += [("rng", "on")] if arguments.rng else []
    if not wanted:
        raise ConfigError("nemu plug", "", f"needs one of --{', --'.join((*KINDS, 'rng'))}")
    with client(arguments.vm) as qmp:
        for kind, value in wanted:
            print(qmp.execute("x-plug", {"option": kind, "value": _from_here(kind, value)})["id"])
    return 0


def _from_here(kind: str, value: str) -> str:
    """``value`` with its paths starting at our directory: the machine may be in another one."""
    from nemu.config import settings
    from nemu.config_file import located

    how = next(one for one in settings() if one.option == kind)
    found: str = located(how, f"--{kind}", [value], os.getcwd())[0] if how.many else value
    return found


def unplug(arguments: argparse.Namespace) -> int:
    """Return when the guest has let go of each."""
    with client(arguments.vm) as qmp:
        for name in arguments.names:
            _remove(qmp, arguments.vm, name)
    return 0


def _remove(qmp: QmpClient, vm: str, name: str) -> None:
    qmp.execute("device_del", {"id": name})
    path = name if name.startswith("/") else f"/machine/peripheral/{name}"
    deadline = time.monotonic() + GRACE
    while (left := deadline - time.monotonic()) > 0:
        event = qmp.next_event(left)
        if event is None:
            break
        if event.get("data", {}).get("path") != path:
            continue
        if event["event"] == "DEVICE_DELETED":
            return
        if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
            raise HostError(f"{vm}: the guest uses {name} and does not let go of it")
    raise HostError(f"{vm}: the guest has not let go of {name} within {GRACE:.0f} s; it still may")


def resize(arguments: argparse.Namespace) -> int:
    """CPUs first, then memory."""
    if arguments.cpus is None and arguments.memory is None:
        raise ConfigError("nemu resize", "", "needs --cpus N or --memory SIZE")
    cpus = _read("--cpus", arguments.cpus, syntax.integer(1, 255))
    memory = _read("--memory", arguments.memory, syntax.size)
    with client(arguments.vm) as qmp:
        if cpus is not None:
            _set_cpus(qmp, arguments.vm, cpus)
        if memory is not None:
            _set_memory(qmp, arguments.vm, memory)
    return 0


def _read(option: str, value: str | None, read: Callable[[object], int]) -> int | None:
    try:
        return None if value is None else read(value)
    except ValueError as error:
        raise ConfigError(option, str(value), str(error)) from None


def _set_cpus(qmp: QmpClient, vm: str, count: int) -> None:
    slots = sorted(qmp.execute("query-hotpluggable-cpus"), key=lambda one: one["props"]["core-id"])
    present = [one for one in slots if "qom-path" in one]
    free = [one for one in slots if "qom-path" not in one]
    if count > len(slots):
        problem = f"this machine has room for {len(slots)} (--cpus N,max=M of nemu run)"
        raise ConfigError("--cpus", str(count), problem)
    for one in free[: max(count - len(present), 0)]:
        number = one["props"]["core-id"]
        qmp.execute("device_add", {"driver": one["type"], "id": f"cpu-{number}", **one["props"]})
    for one in reversed(present[count:]):
        _remove(qmp, vm, one["qom-path"])


def _set_memory(qmp: QmpClient, vm: str, size: int) -> None:
    summary = qmp.execute("query-memory-size-summary")
    more = size - summary["base-memory"] - summary["plugged-memory"]
    if more > 0:
        _add_memory(qmp, more)
        return
    devices = [one["data"] for one in qmp.execute("query-memory-devices") if one["data"].get("id")]
    for device in sorted(devices, key=lambda one: -int(one["size"])):
        if device["size"] <= -more:
            _remove(qmp, vm, device["id"])
            qmp.execute("object-del", {"id": device["memdev"].removeprefix("/objects/")})
            more += device["size"]
    if more:
        left = syntax.show_size(size - more)
        complain(
            f"{vm} has {left} now: memory goes in the pieces in which it came, and what it began with stays"
        )


def _add_memory(qmp: QmpClient, size: int) -> None:
    devices = qmp.execute("query-memory-devices")
    taken = {one["data"]["memdev"].removeprefix("/objects/") for one in devices}
    number = next(number for number in range(len(taken) + 1) if f"resize-{number}" not in taken)
    name = f"resize-{number}"
    qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": name, "size": size})
    try:
        qmp.execute("device_add", {"driver": "pc-dimm", "id": f"dimm-{name}", "memdev": name})
    except Exception:
        qmp.execute("object-del", {"id": name})
        raise
