"""The host's side of devices that are to come: memory, disks, network ports, sockets."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from nemu.qmp.errors import DeviceNotFoundError, QmpError
from nemu.qmp.properties import Properties, boolean, identifier, integer, text, words
from nemu.qmp.registry import Call, command
from nemu.qmp.schema import Rest

if TYPE_CHECKING:
    from nemu.config.disk import DiskConfig
    from nemu.config.net import NetConfig
    from nemu.plug.memory import Dimm

MAX_BACKENDS = 256  # of one kind
_SIZE = integer(1, 1 << 62)
_RANDOM = ("/dev/urandom", "/dev/random")


class ObjectType(Enum):
    MEMORY_BACKEND_RAM = "memory-backend-ram"
    MEMORY_BACKEND_MEMFD = "memory-backend-memfd"
    MEMORY_BACKEND_FILE = "memory-backend-file"
    RNG_RANDOM = "rng-random"


class BlockDriver(Enum):
    """BlockdevDriver."""

    RAW = "raw"
    QCOW2 = "qcow2"
    FILE = "file"
    HOST_DEVICE = "host_device"


class NetdevType(Enum):
    """NetClientDriver."""

    TAP = "tap"
    USER = "user"
    VHOST_USER = "vhost-user"


class ObjectArguments(NamedTuple):
    qom_type: Annotated[ObjectType, "memory or entropy"]
    id: Annotated[str, "its name"]
    rest: Annotated[dict[str, Any], Rest] = {}  # noqa: RUF012 - never changed


class Id(NamedTuple):
    id: Annotated[str, "its name"]


class NodeArguments(NamedTuple):
    driver: Annotated[BlockDriver, "the format, or how the file is reached"]
    node_name: Annotated[str | None, "its name; needed"] = None
    rest: Annotated[dict[str, Any], Rest] = {}  # noqa: RUF012 - never changed


class NodeName(NamedTuple):
    node_name: Annotated[str, "its name"]


class NetdevArguments(NamedTuple):
    id: Annotated[str, "its name"]
    type: Annotated[NetdevType, "what it is"]
    rest: Annotated[dict[str, Any], Rest] = {}  # noqa: RUF012 - never changed


class ChardevArguments(NamedTuple):
    id: Annotated[str, "its name"]
    backend: Annotated[Any, "what it is: a socket of a vhost-user back end"]


class ChardevReturn(NamedTuple):
    pty: Annotated[str | None, "never"] = None


def _check_new(kind: dict[str, Any], name: str, problem: str) -> None:
    """Raise QmpError unless ``name`` may be one more of ``kind``."""
    try:
        identifier(name)
    except ValueError:
        raise QmpError("Parameter 'id' expects an identifier") from None
    if name in kind:
        raise QmpError(problem.format(name))
    if len(kind) >= MAX_BACKENDS:
        raise QmpError(f"There are {MAX_BACKENDS} of them already")


# --- objects ----------------------------------------------------------------------------------


@command("object-add")
def object_add(call: Call, arguments: ObjectArguments) -> None:
    """Make memory or a source of entropy for a device."""
    stock, name = call.session.inventory.stock, arguments.id
    kind = arguments.qom_type.value
    given = Properties(kind, {**arguments.rest.get("props", {}), **arguments.rest})
    given.take("props", dict)
    duplicate = "attempt to add duplicate property '{}' to object (type 'container')"
    _check_new({**stock.memory, **stock.entropy}, name, duplicate)
    if arguments.qom_type is ObjectType.RNG_RANDOM:
        given.take("filename", words(*_RANDOM))
        given.done()
        stock.entropy[name] = object()
    else:
        stock.memory[name] = _memory(kind, given)


def _memory(kind: str, given: Properties) -> Dimm:
    from nemu.plug.memory import new_dimm

    size = given.need("size", _SIZE)
    given.ignore(share=boolean, merge=boolean, dump=boolean)
    folder = given.need("mem-path", text) if kind == "memory-backend-file" else ""
    given.done()
    return new_dimm(size, folder)


@command("object-del")
def object_del(call: Call, arguments: Id) -> None:
    """Take away what object-add made, and no device uses."""
    inventory, name = call.session.inventory, arguments.id
    stock = inventory.stock
    if name not in stock.memory and name not in stock.entropy:
        raise QmpError(f"object '{name}' not found")
    entropy = stock.entropy.get(name)
    if inventory.uses_memory(name) or (entropy and inventory.uses(entropy)):
        raise QmpError(f"object '{name}' is in use, can not be deleted")
    if entropy:
        del stock.entropy[name]
    else:
        stock.memory.pop(name).close()


# --- disks ------------------------------------------------------------------------------------


@command("blockdev-add")
def blockdev_add(call: Call, arguments: NodeArguments) -> None:
    """Open a disk image or block device for a disk."""
    from nemu.validate import disks

    stock, name = call.session.inventory.stock, arguments.node_name
    if name is None:
        raise QmpError("'node-name' must be specified for the root node")
    _check_new(stock.nodes, name, "Duplicate nodes with node-name='{}'")
    config = _disk(arguments.driver.value, arguments.rest)
    disks.check((config,))
    stock.nodes[name] = call.session.peripherals.open_node(config, name)


def _disk(driver: str, rest: dict[str, Any]) -> DiskConfig:
    from nemu.config.disk import DiskConfig

    node = Properties(driver, rest)
    readonly = node.take("read-only", boolean, False)
    _ignore(node)
    file = node
    if driver in ("raw", "qcow2"):
        inner = node.need("file", _mapping)
        node.done()
        file = Properties("file", inner)
        file.need("driver", words("file", "host_device"))
        readonly = file.take("read-only", boolean, readonly) or readonly
        file.take("node-name", identifier)
        _ignore(file)
    path = file.need("filename", text)
    file.take("aio", words("threads", "native", "io_uring"))
    file.take("locking", words("on", "auto"))
    file.done()
    return DiskConfig(path, readonly, format="qcow2" if driver == "qcow2" else "raw")


def _ignore(node: Properties) -> None:
    """What may only ask for what is so anyway."""
    cache = Properties("cache", node.take("cache", _mapping, {}))
    for key in ("direct", "no-flush"):
        if cache.take(key, boolean):
            raise QmpError(f"Parameter 'cache.{key}' expects 'off': it is not supported")
    cache.done()
    node.take("discard", words("unmap", "on", "ignore", "off"))
    node.take("detect-zeroes", words("off"))
    node.take("auto-read-only", boolean)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


@command("blockdev-del")
def blockdev_del(call: Call, arguments: NodeName) -> None:
    """Close a disk that no device uses."""
    inventory, name = call.session.inventory, arguments.node_name
    node = inventory.stock.nodes.get(name)
    if node is None:
        raise QmpError(f"Failed to find node with node-name='{name}'")
    if inventory.uses(node):
        raise QmpError(f"Node {name} is in use")
    inventory.stock.nodes.pop(name).close()


# --- network ----------------------------------------------------------------------------------


@command("netdev_add")
def netdev_add(call: Call, arguments: NetdevArguments) -> None:
    """Open a port of the host's network for a card."""
    from nemu.plug.inventory import Netdev

    stock = call.session.inventory.stock
    _check_new(stock.netdevs, arguments.id, "Duplicate ID '{}' for netdev")
    given = Properties(arguments.type.value, arguments.rest)
    match arguments.type:
        case NetdevType.TAP:
            config = _tap(call, given)
        case NetdevType.USER:
            given.done()
            config = _net("user")
        case NetdevType.VHOST_USER:
            name = given.need("chardev", text)
            given.done()
            config = _net("vhost-user", socket=_socket(call, name))
    stock.netdevs[arguments.id] = Netdev(config, call.session.peripherals.open_port(config))


def _net(backend: str, **given: Any) -> NetConfig:
    from nemu.config.net import NetConfig

    return NetConfig(backend, **given)


def _tap(call: Call, given: Properties) -> NetConfig:
    from nemu.config.net import QUEUES_MAX

    fds = _names(given, "fd", "fds")
    vhostfds = _names(given, "vhostfd", "vhostfds")
    name = given.take("ifname", text, "")
    queues = given.take("queues", integer(1, QUEUES_MAX), 1)
    vhost = given.take("vhost", boolean)
    given.take("script", words("no", ""))
    given.take("downscript", words("no", ""))
    given.ignore(vhostforce=boolean)
    given.done()
    if bool(fds) == bool(name):
        raise QmpError("a tap needs fds (names that getfd gave) or ifname, the name of one that is there")
    pairs = len(fds) or queues
    if pairs > QUEUES_MAX or (vhostfds and len(vhostfds) != pairs):
        raise QmpError("The number of fds passed does not match the number of vhostfds passed")
    if vhost is False and (vhostfds or pairs > 1):
        raise QmpError("several queues, and vhostfds, need vhost=on")
    numbers = call.connection.inbox.take_all([*fds, *vhostfds])
    switch = {None: "auto", True: "on", False: "off"}[vhost]
    mine = {"fds": numbers[: len(fds)]} if fds else {"tap": name, "queues": queues}
    return _net("fd" if fds else "tap", vhost=switch, vhostfds=numbers[len(fds) :], **mine)


def _names(given: Properties, one: str, several: str) -> list[str]:
    single, many = given.take(one, text), given.take(several, text)
    if single and many:
        raise QmpError(f"Parameter '{several}' does not go with '{one}'")
    return [single] if single else many.split(":") if many else []


@command("netdev_del")
def netdev_del(call: Call, arguments: Id) -> None:
    """Close a port that no card uses."""
    inventory, name = call.session.inventory, arguments.id
    netdev = inventory.stock.netdevs.get(name)
    if netdev is None:
        raise DeviceNotFoundError(f"Device '{name}' not found")
    if inventory.uses(netdev.port):
        raise QmpError(f"Device '{name}' is in use")
    inventory.stock.netdevs.pop(name).port.close()


# --- sockets ----------------------------------------------------------------------------------


@command("chardev-add")
def chardev_add(call: Call, arguments: ChardevArguments) -> ChardevReturn:
    """Name the socket of a vhost-user back end; the device that is put on it connects."""
    from nemu.validate import paths

    stock = call.session.inventory.stock
    _check_new(stock.chardevs, arguments.id, "Chardev with id '{}' already exists")
    if arguments.id in (one.label for one in call.session.peripherals.chardevs()):
        raise QmpError(f"Chardev with id '{arguments.id}' already exists")
    backend = Properties("backend", _object("backend", arguments.backend))
    backend.need("type", words("socket"))
    data = Properties("socket", backend.need("data", _mapping))
    backend.done()
    address = Properties("addr", data.need("addr", _mapping))
    if data.take("server", boolean, False):
        raise QmpError("Parameter 'server' expects 'off': the back end listens")
    data.ignore(wait=boolean, nodelay=boolean, reconnect=integer(0, 1 << 31))
    data.done()
    address.need("type", words("unix"))
    inner = Properties("unix", address.need("data", _mapping))
    address.done()
    path = inner.need("path", text)
    inner.done()
    paths.listening("chardev-add", path, path)
    stock.chardevs[arguments.id] = path
    return ChardevReturn()


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise QmpError(f"Invalid parameter type for '{name}', expected: object")
    return value


def _socket(call: Call, name: str) -> str:
    """The path behind a character device that nothing uses."""
    path = call.session.inventory.stock.chardevs.get(name)
    if path is None:
        raise QmpError(f'chardev "{name}" not found')
    return path


@command("chardev-remove")
def chardev_remove(call: Call, arguments: Id) -> None:
    """Forget a socket that no device uses."""
    inventory, name = call.session.inventory, arguments.id
    if name not in inventory.stock.chardevs:
        raise QmpError(f"Chardev '{name}' not found")
    if inventory.on_socket(inventory.stock.chardevs[name]):
        raise QmpError(f"Chardev '{name}' is busy")
    del inventory.stock.chardevs[name]
