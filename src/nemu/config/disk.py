"""``--disk``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table
from nemu.errors import ConfigError

SERIAL_MAX = 20  # bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
QUEUES_MAX = 16
QCOW2_SUFFIX = ".qcow2"
LIMIT_MAX = 1 << 62
SCSI_ID_MAX, LUN_MAX = 255, 16383  # virtio 1.2, 5.6.6.1: one byte, flat space addressing


class DiskConfig(NamedTuple):
    """A disk on an image or a block device, or by vhost-user on a back end at ``socket``."""

    path: str
    readonly: bool = False
    serial: str = ""  # at most 20 bytes of ASCII (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
    queues: int = 0  # 0: one for each CPU, at most 4
    format: str = ""  # "raw" or "qcow2"; "": raw, but nobody said so
    iops: int = 0  # requests each second, 0: no limit
    bps: int = 0  # bytes each second, 0: no limit
    cache: str = "writeback"  # or "writethrough": what is written is on stable storage when it is done
    socket: str = ""  # then ``path`` is ""
    bus: str = "virtio"  # or "scsi": a unit of the one SCSI controller
    scsi_id: int = -1  # target and LUN there; -1: see scsi_addresses
    lun: int = -1

    @property
    def in_process(self) -> bool:
        """Whether nemu serves it itself; else qemu-storage-daemon or whoever is at the socket does."""
        daemon = self.format == "qcow2" or self.iops or self.bps or self.cache == "writethrough"
        return not (self.socket or daemon)

    @classmethod
    def read(cls, value: object) -> DiskConfig:
        """From ``PATH`` or ``vhost-user=SOCKET`` and ``,key=value`` for fields, or a table with these keys.

        The format is by the name, or as it is given, and never by the content alone: a guest could write
        the head of a qcow2 image into its raw one, and name any file of the host as the backing file.
        """
        if isinstance(value, str):
            first, *rest = syntax.properties(value)
            value = pairs([first if first.startswith("vhost-user=") else f"path={first}", *rest])
        queues = syntax.integer(1, QUEUES_MAX)
        if isinstance(value, Mapping) and "vhost-user" in value:
            given = table(value, queues=queues, **{"vhost-user": syntax.path})
            return cls("", socket=given.pop("vhost-user"), **given)
        given = table(
            value,
            path=syntax.path,
            readonly=syntax.switch,
            serial=_serial,
            queues=queues,
            format=syntax.choice("raw", "qcow2"),
            iops=syntax.integer(1, LIMIT_MAX),
            bps=syntax.size,
            cache=syntax.choice("writeback", "writethrough"),
            bus=syntax.choice("virtio", "scsi"),
            lun=syntax.integer(0, LUN_MAX),
            **{"scsi-id": syntax.integer(0, SCSI_ID_MAX)},
        )
        given["scsi_id"] = given.pop("scsi-id", -1)
        given.setdefault("format", "qcow2" if given["path"].endswith(QCOW2_SUFFIX) else "")
        disk = cls(**given)
        if disk.serial and not disk.in_process:
            raise ValueError("serial needs a raw image and nothing else: qemu-storage-daemon has no serials")
        disk._check_bus()
        return disk

    def _check_bus(self) -> None:
        if self.bus != "scsi":
            if self.scsi_id >= 0 or self.lun >= 0:
                raise ValueError("scsi-id and lun need bus=scsi")
        elif not self.in_process:
            raise ValueError("bus=scsi needs a raw image without limits")
        elif self.queues:
            raise ValueError("queues is for virtio disks: SCSI disks share those of their controller")


def scsi_addresses(disks: Sequence[DiskConfig]) -> list[tuple[int, int]]:
    """(target, LUN) of each disk in ``disks`` that is on the SCSI bus, in their order.

    A disk with a target only has its first free LUN; one without any, LUN 0 (or ``lun``) of the first target
    where that is free.  Raises ConfigError for an address that is given twice, or when there is none left.
    """
    scsi = [disk for disk in disks if disk.bus == "scsi"]
    taken: set[tuple[int, int]] = set()
    for disk in scsi:
        if disk.scsi_id >= 0 and disk.lun >= 0:
            if (disk.scsi_id, disk.lun) in taken:
                problem = f"scsi-id={disk.scsi_id},lun={disk.lun} is given twice"
                raise ConfigError("--disk", disk.path, problem)
            taken.add((disk.scsi_id, disk.lun))
    return [_scsi_address(disk, taken) for disk in scsi]


def _scsi_address(disk: DiskConfig, taken: set[tuple[int, int]]) -> tuple[int, int]:
    """Where ``disk`` is, which is taken then."""
    if disk.scsi_id >= 0 and disk.lun >= 0:
        return disk.scsi_id, disk.lun
    if disk.scsi_id >= 0:
        candidates = ((disk.scsi_id, lun) for lun in range(LUN_MAX + 1))
    else:
        candidates = ((target, max(disk.lun, 0)) for target in range(SCSI_ID_MAX + 1))
    for address in candidates:
        if address not in taken:
            taken.add(address)
            return address
    raise ConfigError("--disk", disk.path, "finds no free place on the SCSI bus; give it a scsi-id and a lun")


def _serial(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII")
    if len(value) > SERIAL_MAX:
        raise ValueError(f"must have at most {SERIAL_MAX} characters")
    return value
