"""Devices that come and go while the guest runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from nemu.qmp.commands.machine import CPU_TYPE
from nemu.qmp.errors import DeviceNotFoundError, QmpError
from nemu.qmp.properties import Properties, boolean, identifier, integer, text
from nemu.qmp.registry import Call, command
from nemu.qmp.schema import Rest

ROOT_BUS = "pcie.0"
_ANY = integer(-(1 << 63), (1 << 63) - 1)


class DeviceArguments(NamedTuple):
    driver: Annotated[str, "its type"]
    bus: Annotated[str | None, "where it goes: pcie.0, or the bus of a SCSI controller"] = None
    id: Annotated[str | None, "its name"] = None
    rest: Annotated[dict[str, Any], Rest] = {}  # noqa: RUF012 - never changed


class Id(NamedTuple):
    id: Annotated[str, "its name, or the path of its object"]


class Request(NamedTuple):
    """A device that somebody wants: ``name`` is "" where that does not matter."""

    call: Call
    name: str
    bus: str | None
    given: Properties


@command("device_add")
def device_add(call: Call, arguments: DeviceArguments) -> None:
    """Plug in a CPU, memory, a disk, a network card or another device."""
    add = DRIVERS.get(arguments.driver)
    if add is None:
        raise QmpError(f"'{arguments.driver}' is not a valid device model name")
    name = arguments.id or ""
    if arguments.id is not None:
        try:
            identifier(name)
        except ValueError:
            raise QmpError("Parameter 'id' expects an identifier") from None
        if name in call.session.inventory.names():
            raise QmpError(f"Duplicate device ID '{name}'")
    add(Request(call, name, arguments.bus, Properties(arguments.driver, arguments.rest)))


@command("device_del")
def device_del(call: Call, arguments: Id) -> None:
    """Ask the guest to let go of a device; DEVICE_DELETED tells when it has."""
    if not call.session.inventory.request_removal(arguments.id):
        raise DeviceNotFoundError(f"Device '{arguments.id}' not found")


# --- CPUs and memory --------------------------------------------------------------------------


def _cpu(request: Request) -> None:
    given, inventory = request.given, request.call.session.inventory
    number = given.need("core-id", integer(0, 1 << 16))
    for place in ("socket-id", "die-id", "thread-id", "node-id"):
        if given.take(place, _ANY, 0) != 0:
            raise QmpError(f"Invalid CPU {place}: the machine has one package of cores with one thread each")
    given.done()
    _refuse_bus(request)
    inventory.plug_cpu(number, request.name)


def _dimm(request: Request) -> None:
    from nemu.plug.inventory import Module

    given, inventory = request.given, request.call.session.inventory
    memory = given.need("memdev", text)
    slot = given.take("slot", integer(0, 255))
    if given.take("node", _ANY, 0) != 0:
        raise QmpError("'DIMM property node has value' beyond the one node of this machine")
    given.done()
    _refuse_bus(request)
    if memory not in inventory.stock.memory:
        raise DeviceNotFoundError(f"Device '{memory}' not found")
    if inventory.uses_memory(memory):
        raise QmpError(f"can't use already busy memdev: {memory}")
    inventory.plug_memory(Module(request.name, memory, inventory.stock.memory[memory]), slot)


def _refuse_bus(request: Request) -> None:
    if request.bus is not None:
        raise QmpError(f"Bus '{request.bus}' not found")


# --- PCI --------------------------------------------------------------------------------------


def devfn(value: Any) -> int:
    """A slot, from ``1f``, ``1f.0`` (hexadecimal) or a number that has slot and function in it."""
    problem = ValueError("a PCI address: a slot from 1 to 1f in hexadecimal, function 0")
    if isinstance(value, int) and not isinstance(value, bool):
        slot, function = divmod(value, 8)
    else:
        try:
            first, _, second = text(value).partition(".")
            slot, function = int(first, 16), int(second or "0", 16)
        except ValueError:
            raise problem from None
    if not 1 <= slot <= 31 or function:
        raise problem
    return slot


def _slot(request: Request) -> int | None:
    """Where a PCI device goes, and what means nothing here: there is no firmware and no legacy."""
    if request.bus not in (None, ROOT_BUS):
        raise QmpError(f"Bus '{request.bus}' not found")
    given = request.given
    given.ignore(romfile=str, rombar=_ANY, disable_modern=boolean, disable_legacy=_on_off_auto)
    given.ignore(vectors=_ANY, bootindex=_ANY, modern_pio_notify=boolean)
    slot: int | None = given.take("addr", devfn)
    return slot


def _on_off_auto(value: Any) -> bool | None:
    return None if value == "auto" else boolean(value)


def _plug(request: Request, field: str, config: Any, slot: int | None, backend: Any = None) -> None:
    request.given.done()
    session = request.call.session
    session.inventory.plug_device(
        lambda: session.peripherals.make(field, config, request.name, backend), slot
    )


def _node(request: Request) -> Any:
    """The idle Node that ``drive`` names."""
    inventory, name = request.call.session.inventory, request.given.take("drive", text)
    if name is None:
        raise QmpError("drive property not set")
    node = inventory.stock.nodes.get(name)
    if node is None:
        raise QmpError(f"Property 'drive' can't find value '{name}'")
    if inventory.uses(node):
        raise QmpError(f"Node '{name}' is in use by another device")
    return node


def _serial(value: Any) -> str:
    from nemu.config.disk import SERIAL_MAX

    serial = str(value)
    if not serial.isascii() or not serial.isprintable() or len(serial) > SERIAL_MAX:
        raise ValueError(f"at most {SERIAL_MAX} printable characters")
    return serial


def _blk(request: Request) -> None:
    from nemu.config.disk import QUEUES_MAX

    given, slot, node = request.given, _slot(request), _node(request)
    queues = given.take("num-queues", integer(1, QUEUES_MAX), 0)
    serial = given.take("serial", _serial, "")
    if serial and not node.config.in_process:
        raise QmpError("Parameter 'serial' needs a raw image")
    given.ignore(share_rw=boolean, config_wce=boolean)
    _plug(request, "disks", node.config._replace(queues=queues, serial=serial), slot, node)


def _vhost_user_blk(request: Request) -> None:
    from nemu.config.disk import QUEUES_MAX, DiskConfig

    given, slot = request.given, _slot(request)
    path = _chardev(request)
    queues = given.take("num-queues", integer(1, QUEUES_MAX), 0)
    _plug(request, "disks", DiskConfig("", socket=path, queues=queues), slot)


def _vhost_user_fs(request: Request) -> None:
    from nemu.config.vhost_user import FILE_SYSTEM, QUEUE_SIZE_MAX, VhostUserConfig, fs_tag

    given, slot = request.given, _slot(request)
    path = _chardev(request)
    tag = given.need("tag", fs_tag)
    size = given.take("queue-size", integer(2, QUEUE_SIZE_MAX), 128)
    if size & (size - 1):
        raise QmpError("Parameter 'queue-size' expects a power of two")
    queues = given.take("num-request-queues", integer(1, 63), 1)
    given.ignore(cache_size=_zero)
    _plug(request, "vhost_users", VhostUserConfig(FILE_SYSTEM, path, queues + 1, size, tag), slot)


def _zero(value: Any) -> int:
    return integer(0, 0)(value)


def _chardev(request: Request) -> str:
    inventory, name = request.call.session.inventory, request.given.need("chardev", text)
    path = inventory.stock.chardevs.get(name)
    if path is None:
        raise QmpError(f"Property 'chardev' can't find value '{name}'")
    if inventory.on_socket(path):
        raise QmpError(f"Property 'chardev' can't take value '{name}', it's in use")
    return path


def _net(request: Request) -> None:
    from nemu import syntax

    given, slot = request.given, _slot(request)
    inventory, name = request.call.session.inventory, given.need("netdev", text)
    mac = given.take("mac", syntax.mac_address, "")
    given.ignore(mq=boolean, host_mtu=_zero)
    netdev = inventory.stock.netdevs.get(name)
    if netdev is None:
        raise QmpError(f"Property 'netdev' can't find value '{name}'")
    if inventory.uses(netdev.port):
        raise QmpError(f"Property 'netdev' can't take value '{name}', it's in use")
    _plug(request, "nets", netdev.config._replace(mac=mac), slot, netdev.port)


def _rng(request: Request) -> None:
    given, slot = request.given, _slot(request)
    inventory, name = request.call.session.inventory, given.take("rng", text)
    entropy = None
    if name is not None:
        entropy = inventory.stock.entropy.get(name)
        if entropy is None:
            raise DeviceNotFoundError(f"Device '{name}' not found")
    _plug(request, "rng", True, slot, entropy)


def _scsi(request: Request) -> None:
    from nemu.backends.disk import Disk
    from nemu.config.disk import LUN_MAX, SCSI_ID_MAX

    given, inventory = request.given, request.call.session.inventory
    buses = inventory.controllers()
    bus = request.bus or next(iter(buses), "")
    if bus not in buses:
        raise QmpError(f"Bus '{bus}' not found" if bus else "No 'SCSI' bus found for device 'scsi-hd'")
    controller, node = buses[bus], _node(request)
    target = given.take("scsi-id", integer(0, SCSI_ID_MAX))
    lun = given.take("lun", integer(0, LUN_MAX), 0)
    serial = given.take("serial", _serial, "")
    given.ignore(share_rw=boolean, channel=_zero, bootindex=_ANY)
    given.done()
    if not isinstance(node.disk, Disk):
        raise QmpError("a SCSI disk needs a raw image")
    if target is None:
        free = (one for one in range(SCSI_ID_MAX + 1) if (one, lun) not in controller.units)
        target = next(free, None)
    if target is None:
        raise QmpError("the SCSI bus is full")
    inventory.plug_unit(controller, (target, lun), request.name, node, serial)


DRIVERS: dict[str, Callable[[Request], None]] = {
    CPU_TYPE: _cpu,
    "pc-dimm": _dimm,
    "virtio-blk-pci": _blk,
    "virtio-net-pci": _net,
    "virtio-rng-pci": _rng,
    "vhost-user-blk-pci": _vhost_user_blk,
    "vhost-user-fs-pci": _vhost_user_fs,
    "scsi-hd": _scsi,
}


# --- in the words of nemu run -------------------------------------------------------------------


class PlugArguments(NamedTuple):
    option: Annotated[str, "disk, net, rng or vhost-user"]
    value: Annotated[str, "as nemu run takes it; paths from /"] = "on"
    id: Annotated[str | None, "its name; without one it gets one"] = None


class Plugged(NamedTuple):
    id: Annotated[str, "its name, for device_del"]


_FIELDS = {"disk": "disks", "net": "nets", "rng": "rng", "vhost-user": "vhost_users"}


@command("x-plug")
def x_plug(call: Call, arguments: PlugArguments) -> Plugged:
    """Plug in a device that is described as for nemu run; its backends go with it."""
    from importlib import import_module

    from nemu.config import settings

    name = arguments.id or ""
    field = _FIELDS.get(arguments.option)
    if field is None:
        raise QmpError(f"Parameter 'option' does not accept value '{arguments.option}'")
    if name and name in call.session.inventory.names():
        raise QmpError(f"Duplicate device ID '{name}'")
    how = next(one for one in settings() if one.option == arguments.option)
    try:
        if name:
            identifier(name)
        config = how.read(arguments.value)
    except ValueError as error:
        raise QmpError(f"{arguments.option} {arguments.value}: {error}") from None
    if getattr(config, "bus", "") == "scsi" or getattr(config, "fds", ()) or getattr(config, "vhostfds", ()):
        raise QmpError("descriptors and SCSI disks are for blockdev-add, netdev_add and device_add")
    if how.many:
        import_module(f"nemu.validate.{field}").check((config,))
    session = call.session
    return Plugged(session.inventory.plug_device(lambda: session.peripherals.make(field, config, name)))
