"""``--disk``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

SERIAL_MAX = 20  # bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
QUEUES_MAX = 16
QCOW2_SUFFIX = ".qcow2"
LIMIT_MAX = 1 << 62


class DiskConfig(NamedTuple):
    """A virtio-blk disk on an image or a block device, or by vhost-user on a back end at ``socket``."""

    path: str
    readonly: bool = False
    serial: str = ""  # at most 20 bytes of ASCII (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
    queues: int = 0  # 0: one for each CPU, at most 4
    format: str = ""  # "raw" or "qcow2"; "": raw, but nobody said so
    iops: int = 0  # requests each second, 0: no limit
    bps: int = 0  # bytes each second, 0: no limit
    socket: str = ""  # then ``path`` is ""

    @property
    def in_process(self) -> bool:
        """Whether nemu serves it itself; else qemu-storage-daemon or whoever is at the socket does."""
        return not (self.socket or self.format == "qcow2" or self.iops or self.bps)

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
        )
        given.setdefault("format", "qcow2" if given["path"].endswith(QCOW2_SUFFIX) else "")
        disk = cls(**given)
        if disk.serial and not disk.in_process:
            raise ValueError("serial needs a raw image without limits: qemu-storage-daemon has no serials")
        return disk


def _serial(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII")
    if len(value) > SERIAL_MAX:
        raise ValueError(f"must have at most {SERIAL_MAX} characters")
    return value
