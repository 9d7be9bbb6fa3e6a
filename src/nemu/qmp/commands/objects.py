"""The machine as QEMU's tree of objects (QOM), as far as clients ask for it: its types and properties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from nemu.qmp.commands import machine as machines
from nemu.qmp.errors import DeviceNotFoundError, QmpError
from nemu.qmp.registry import Call, command

if TYPE_CHECKING:
    from nemu.interfaces import PciFunctionInfo
    from nemu.plug.inventory import Module
    from nemu.session import Session

_MACHINE_TYPE = f"{machines.MACHINE}-machine"
_DIMM_TYPE, _MEMORY_TYPE = "pc-dimm", "memory-backend-memfd"
_BUS_PATH = "/machine/pcie.0"
_VIRTIO_BASE = 0x1040  # PCI device id of a virtio device, less its type (virtio 1.2, 4.1.2.1)
DRIVERS = {
    1: "virtio-net-pci",
    2: "virtio-blk-pci",
    3: "virtio-serial-pci",
    4: "virtio-rng-pci",
    5: "virtio-balloon-pci",
    8: "virtio-scsi-pci",
    19: "vhost-vsock-pci",
    26: "vhost-user-fs-pci",
    27: "virtio-pmem-pci",
}
OTHER_DRIVER = "vhost-user-device-pci"  # whatever else a vhost-user back end is


class Type(NamedTuple):
    """``properties`` are what it has beside those of its parent: name -> type."""

    parent: str
    abstract: bool = False
    properties: dict[str, str] = {}  # noqa: RUF012 - never changed


TYPES = {
    "object": Type("", True, {"type": "string"}),
    "container": Type("object"),
    "machine": Type("object", True),
    _MACHINE_TYPE: Type("machine", False, {"kernel": "string", "initrd": "string", "append": "string"}),
    "bus": Type("object", True),
    "PCIE": Type("bus"),
    "device": Type("object", True, {"realized": "bool", "hotplugged": "bool", "hotpluggable": "bool"}),
    "cpu": Type("device", True, {"socket-id": "int32", "core-id": "int32", "thread-id": "int32"}),
    "x86_64-cpu": Type("cpu", True),
    machines.CPU_TYPE: Type("x86_64-cpu"),
    _DIMM_TYPE: Type("device", False, {"slot": "int32", "size": "uint64", "memdev": "link<memory-backend>"}),
    "memory-backend": Type("object", True, {"size": "int"}),
    _MEMORY_TYPE: Type("memory-backend"),
    "pci-device": Type("device", True, {"addr": "int32", "parent_bus": "link<bus>"}),
    "virtio-pci": Type("pci-device", True),
    **{driver: Type("virtio-pci") for driver in (*DRIVERS.values(), OTHER_DRIVER)},
}


def ancestors(name: str) -> Iterator[str]:
    """``name`` and the types above it."""
    while name:
        yield name
        name = TYPES[name].parent


def properties(name: str) -> dict[str, str]:
    """The properties of type ``name``, and their types."""
    found: dict[str, str] = {}
    for one in reversed(list(ancestors(name))):
        found |= TYPES[one].properties
    return found


# --- objects ----------------------------------------------------------------------------------


class Node(NamedTuple):
    """An object: its properties' values (of the type itself aside) and its children."""

    type: str
    values: dict[str, Any]
    children: dict[str, Node]


def tree(session: Session) -> Node:
    """The root of ``session``'s objects, as they are now."""
    config = session.config
    functions = [one for one in session.machine.pci_functions() if one.name]
    inventory = session.inventory
    present = session.machine.cpus.present
    cpus = {f"device[{number}]": _cpu(number) for number in present if not inventory.cpus.get(number)}
    plugged = {
        name: _cpu(number, name) for number, name in inventory.cpus.items() if name and number in present
    }
    modules = {one.name: _dimm(one, slot) for slot, one in inventory.modules.items() if one.name}
    devices = {one.name: _device(one) for one in functions}
    children = {
        "peripheral": Node("container", {}, {**devices, **plugged, **modules}),
        "peripheral-anon": Node("container", {}, {}),
        "unattached": Node("container", {}, cpus),
        "pcie.0": Node("PCIE", {}, {}),
    }
    values = {"kernel": config.kernel, "initrd": config.initrd, "append": config.append}
    machine = Node(_MACHINE_TYPE, values, children)
    memory = {
        name: Node(_MEMORY_TYPE, {"size": one.size}, {}) for name, one in inventory.stock.memory.items()
    }
    others = {"objects": Node("container", {}, memory), "chardevs": Node("container", {}, {})}
    return Node("container", {}, {"machine": machine, **others})


def _dimm(module: Module, slot: int) -> Node:
    values = {"slot": slot, "size": module.dimm.size, "memdev": f"/objects/{module.memory}"}
    return Node(_DIMM_TYPE, {**_HOT, **values}, {})


def _cpu(number: int, name: str = "") -> Node:
    place = machines.core(number)
    values = {"socket-id": place.socket_id, "core-id": place.core_id, "thread-id": place.thread_id}
    return Node(machines.CPU_TYPE, {**(_HOT if name else _COLD), **values}, {})


def _device(function: PciFunctionInfo) -> Node:
    kind = DRIVERS.get(function.device - _VIRTIO_BASE, OTHER_DRIVER)
    return Node(kind, {**_COLD, "addr": function.slot << 3, "parent_bus": _BUS_PATH}, {})


_HOT = {"realized": True, "hotplugged": True, "hotpluggable": True}
_COLD = {"realized": True, "hotplugged": False, "hotpluggable": False}


def _find(session: Session, path: str) -> Node:
    node: Node | None = tree(session) if path.startswith("/") else None
    for part in filter(None, path.split("/")):
        node = node and node.children.get(part)
    if node is None:
        raise DeviceNotFoundError(f"Device '{path}' not found")
    return node


# --- commands ---------------------------------------------------------------------------------


class PropertyInfo(NamedTuple):
    """ObjectPropertyInfo."""

    name: Annotated[str, "the property"]
    type: Annotated[str, "its type; child<TYPE> is an object below"]


class TypeInfo(NamedTuple):
    """ObjectTypeInfo."""

    name: Annotated[str, "the type"]
    abstract: Annotated[bool | None, "no object is of just this type"] = None
    parent: Annotated[str | None, "what it is a kind of"] = None


class PathArguments(NamedTuple):
    path: Annotated[str, "the object's path, from /"]


class PropertyArguments(NamedTuple):
    path: Annotated[str, "the object's path, from /"]
    property: Annotated[str, "the property"]


class TypesArguments(NamedTuple):
    implements: Annotated[str | None, "only kinds of this type"] = None
    abstract: Annotated[bool | None, "abstract ones too"] = None


class TypeArguments(NamedTuple):
    typename: Annotated[str, "the type"]


@command("qom-list")
def qom_list(call: Call, arguments: PathArguments) -> list[PropertyInfo]:
    """The properties of an object, and the objects below it."""
    node = _find(call.session, arguments.path)
    own = [PropertyInfo(*one) for one in properties(node.type).items()]
    return own + [PropertyInfo(name, f"child<{child.type}>") for name, child in node.children.items()]


@command("qom-get")
def qom_get(call: Call, arguments: PropertyArguments) -> Any:
    """The value of a property, or the path of an object below."""
    node, name = _find(call.session, arguments.path), arguments.property
    if name == "type":
        return node.type
    if name in node.children:
        return f"{arguments.path.rstrip('/')}/{name}"
    if name not in node.values:
        raise QmpError(f"Property '{node.type}.{name}' not found")
    return node.values[name]


@command("qom-list-types")
def qom_list_types(call: Call, arguments: TypesArguments) -> list[TypeInfo]:
    """The types of objects."""
    return [
        TypeInfo(name, one.abstract or None, one.parent or None)
        for name, one in TYPES.items()
        if (arguments.abstract or not one.abstract)
        and (arguments.implements is None or arguments.implements in ancestors(name))
    ]


@command("device-list-properties")
def device_list_properties(call: Call, arguments: TypeArguments) -> list[PropertyInfo]:
    """The properties of a type of device."""
    name = arguments.typename
    if name not in TYPES:
        raise DeviceNotFoundError(f"Device '{name}' not found")
    if "device" not in ancestors(name) or TYPES[name].abstract:
        raise QmpError("Parameter 'typename' expects a non-abstract device type")
    generic = properties("device")
    return [PropertyInfo(*one) for one in properties(name).items() if one[0] not in generic]


@command("qom-list-properties")
def qom_list_properties(call: Call, arguments: TypeArguments) -> list[PropertyInfo]:
    """The properties of a type of object."""
    if arguments.typename not in TYPES:
        raise DeviceNotFoundError(f"Class '{arguments.typename}' not found")
    return [PropertyInfo(*one) for one in properties(arguments.typename).items()]
