"""What is attached to the machine."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, NamedTuple

from nemu.interfaces import BlockInfo, PciFunctionInfo
from nemu.qmp.errors import DeviceNotActiveError, QmpError
from nemu.qmp.registry import Call, command
from nemu.qmp.schema import Wire

_CLASSES = {0x0100: "SCSI controller", 0x0180: "Storage controller", 0x0200: "Ethernet controller"}
_CLASSES |= {0x0600: "Host bridge", 0x0780: "Communication controller"}


# --- disks ------------------------------------------------------------------------------------


class Image(NamedTuple):
    """ImageInfo."""

    filename: Annotated[str, "the file"]
    format: Annotated[str, "raw or qcow2"]
    virtual_size: Annotated[int, "bytes that the guest sees"]


class Cache(NamedTuple):
    """BlockdevCacheInfo."""

    writeback: Annotated[bool, "a write may wait in the host's page cache until the guest flushes"]
    direct: Annotated[bool, "the page cache is not used"]
    no_flush: Annotated[bool, "flushes are ignored"]


class DetectZeroes(Enum):
    OFF = "off"


class Inserted(NamedTuple):
    """BlockDeviceInfo; what is about throttling is 0, for there is none."""

    file: Annotated[str, "the file"]
    node_name: Annotated[str, "its name"]
    ro: Annotated[bool, "it is not written"]
    drv: Annotated[str, "raw or qcow2"]
    image: Annotated[Image, "the image"]
    cache: Annotated[Cache, "how it is cached"]
    detect_zeroes: Annotated[DetectZeroes, "writes of zeroes are as others", Wire("detect_zeroes")]
    backing_file_depth: Annotated[int, "images below it", Wire("backing_file_depth")] = 0
    encrypted: Annotated[bool, "it is encrypted"] = False
    write_threshold: Annotated[int, "none", Wire("write_threshold")] = 0
    bps: Annotated[int, "bytes a second"] = 0
    bps_rd: Annotated[int, "bytes read a second", Wire("bps_rd")] = 0
    bps_wr: Annotated[int, "bytes written a second", Wire("bps_wr")] = 0
    iops: Annotated[int, "operations a second"] = 0
    iops_rd: Annotated[int, "reads a second", Wire("iops_rd")] = 0
    iops_wr: Annotated[int, "writes a second", Wire("iops_wr")] = 0


class Block(NamedTuple):
    """QEMU's BlockInfo."""

    device: Annotated[str, "empty, as for disks by node name"]
    qdev: Annotated[str, "the device's object"]
    type: Annotated[str, "unknown, as for every disk"]
    removable: Annotated[bool, "it has a door"]
    locked: Annotated[bool, "the door is locked"]
    inserted: Annotated[Inserted, "the medium"]


@command("query-block")
def query_block(call: Call) -> list[Block]:
    """The disks."""
    return [_block(one) for one in call.session.peripherals.blocks()]


def _block(block: BlockInfo) -> Block:
    inserted = Inserted(
        file=block.path,
        node_name=block.node,
        ro=block.readonly,
        drv=block.format,
        image=Image(block.path, block.format, block.size),
        cache=Cache(True, False, False),
        detect_zeroes=DetectZeroes.OFF,
    )
    return Block("", f"/machine/peripheral/{block.device}", "unknown", False, False, inserted)


# --- consoles ---------------------------------------------------------------------------------


class Chardev(NamedTuple):
    """QEMU's ChardevInfo."""

    label: Annotated[str, "console, serial, the name of a port, or the one that chardev-add gave"]
    filename: Annotated[str, "where it goes: stdio, file:PATH, unix:PATH"]
    frontend_open: Annotated[bool, "a device is attached"]


@command("query-chardev")
def query_chardev(call: Call) -> list[Chardev]:
    """Where the consoles and ports go, and the sockets of chardev-add."""
    inventory = call.session.inventory
    sockets = [
        Chardev(name, f"unix:{path}", inventory.on_socket(path))
        for name, path in inventory.stock.chardevs.items()
    ]
    return [*(Chardev(*one) for one in call.session.peripherals.chardevs()), *sockets]


# --- PCI --------------------------------------------------------------------------------------


class PciClass(NamedTuple):
    class_: Annotated[int, "class and subclass", Wire("class")]
    desc: Annotated[str | None, "in words"] = None


class PciId(NamedTuple):
    vendor: Annotated[int, "vendor"]
    device: Annotated[int, "device"]
    subsystem_vendor: Annotated[int, "subsystem's vendor"]
    subsystem: Annotated[int, "subsystem"]


class PciRegion(NamedTuple):
    bar: Annotated[int, "number of the BAR"]
    type: Annotated[str, "memory: no BAR is of ports"]
    address: Annotated[int, "guest-physical address, -1 while it is not decoded"]
    size: Annotated[int, "bytes"]
    prefetch: Annotated[bool, "reads have no side effect"]
    mem_type_64: Annotated[bool, "it takes two registers", Wire("mem_type_64")]


class PciDevice(NamedTuple):
    bus: Annotated[int, "number of the bus"]
    slot: Annotated[int, "device on it"]
    function: Annotated[int, "function of that"]
    class_info: Annotated[PciClass, "what it is", Wire("class_info")]
    id: Annotated[PciId, "who made it"]
    irq_pin: Annotated[int, "0: interrupts are messages", Wire("irq_pin")]
    qdev_id: Annotated[str, "the device's name", Wire("qdev_id")]
    regions: Annotated[list[PciRegion], "its BARs"]


class PciBus(NamedTuple):
    """PciInfo."""

    bus: Annotated[int, "number of the bus"]
    devices: Annotated[list[PciDevice], "what is on it"]


@command("query-pci")
def query_pci(call: Call) -> list[PciBus]:
    """The PCI bus and the functions on it, as the guest has set them up."""
    return [PciBus(0, [_function(one) for one in call.session.machine.pci_functions()])]


def _function(info: PciFunctionInfo) -> PciDevice:
    return PciDevice(
        bus=0,
        slot=info.slot,
        function=0,
        class_info=PciClass(info.class_code, _CLASSES.get(info.class_code)),
        id=PciId(info.vendor, info.device, info.subsystem_vendor, info.subsystem),
        irq_pin=0,
        qdev_id=info.name,
        regions=[
            PciRegion(
                bar.number,
                "memory",
                -1 if bar.address is None else bar.address,
                bar.size,
                bar.prefetchable,
                bar.is_64bit,
            )
            for bar in info.bars
        ],
    )


# --- the balloon --------------------------------------------------------------------------------


class BalloonInfo(NamedTuple):
    actual: Annotated[int, "bytes of memory that the guest has now"]


class BalloonArguments(NamedTuple):
    value: Annotated[int, "bytes that the guest shall have"]


@command("query-balloon")
def query_balloon(call: Call) -> BalloonInfo:
    """How much memory the balloon leaves to the guest."""
    balloon = call.session.machine.balloon
    if balloon is None:
        raise _no_balloon()
    return BalloonInfo(balloon.actual)


@command("balloon")
def balloon(call: Call, arguments: BalloonArguments) -> None:
    """Ask the guest to give memory back, or let it have it again."""
    device = call.session.machine.balloon
    if device is None:
        raise _no_balloon()
    if not 0 < arguments.value <= call.session.config.memory.size:
        raise QmpError("Parameter 'value' expects a size up to that of the machine's memory")
    device.set_target(arguments.value)


def _no_balloon() -> QmpError:
    return DeviceNotActiveError("No balloon device has been activated")
