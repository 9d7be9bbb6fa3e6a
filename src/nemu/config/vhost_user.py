"""``--vhost-user``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

TYPE_MAX = 63  # virtio 1.2, 4.1.2.1: PCI device ids 0x1040 to 0x107f
QUEUES_MAX = 127  # a vector of MSI-X for each, and one for the configuration
QUEUE_SIZE_MAX = 1024  # what the back ends of the field take

FILE_SYSTEM = 26
TAG_MAX = 36  # bytes (virtio 1.2, 5.11.4)


class VhostUserConfig(NamedTuple):
    """A virtio device of type ``type`` (virtio 1.2, section 5) on the back end at ``socket``."""

    type: int
    socket: str
    queues: int = 0  # 0: what the type has
    queue_size: int = 256
    tag: str = ""  # of a file system (type 26), where the back end does not say it

    @classmethod
    def read(cls, value: object) -> VhostUserConfig:
        """From ``type=N,socket=SOCKET[,queues=N][,queue-size=N][,tag=TEXT]`` or a table with these keys."""
        if isinstance(value, str):
            value = pairs(syntax.properties(value))
        given = table(
            value,
            type=syntax.integer(1, TYPE_MAX),
            socket=syntax.path,
            queues=syntax.integer(1, QUEUES_MAX),
            tag=fs_tag,
            **{"queue-size": _queue_size},
        )
        if "type" not in given or "socket" not in given:
            raise ValueError("needs type=N and socket=SOCKET")
        if "tag" in given and given["type"] != FILE_SYSTEM:
            raise ValueError(f"tag goes with type={FILE_SYSTEM}, a file system")
        return cls(queue_size=given.pop("queue-size", 256), **given)


def fs_tag(value: object) -> str:
    """The name under which a guest mounts a file system."""
    tag = syntax.text(value)
    if not 1 <= len(tag.encode()) <= TAG_MAX:
        raise ValueError(f"must be 1 to {TAG_MAX} bytes")
    return tag


def _queue_size(value: object) -> int:
    size = syntax.integer(2, QUEUE_SIZE_MAX)(value)
    if size & (size - 1):
        raise ValueError(f"must be a power of two of at most {QUEUE_SIZE_MAX}")
    return size
