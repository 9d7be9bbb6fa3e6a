"""Disks by vhost-user: of a back end at a socket, or of a qemu-storage-daemon that nemu starts.

The daemon brings what images of the field have: qcow2, backing files, throttling.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nemu.errors import ConfigError
from nemu.vhost.user.device import VhostUserDevice
from nemu.vhost.user.endpoint import ChildEndpoint, PrivateListener, SocketEndpoint
from nemu.vhost.user.frontend import Frontend

if TYPE_CHECKING:
    from collections.abc import Callable

    from nemu.config.disk import DiskConfig
    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam
    from nemu.vhost.user.script import Activation

PROGRAM, PACKAGE = "qemu-storage-daemon", "qemu-system-common"
LISTENER = 3  # the first descriptor that a Child inherits
DEVICE_ID = 2
QUEUE_SIZE = 128
# 5.2.4 up to the write zeroes fields; what came later a back end may lack
CONFIG_SIZE = 60
_WRITEBACK, _NUM_QUEUES = 32, 34  # offsets of a u8 and a u16
F_RO, F_FLUSH, F_CONFIG_WCE, F_MQ = 1 << 5, 1 << 9, 1 << 11, 1 << 12
SECTOR = 512


class VhostUserBlk(VhostUserDevice):
    """A disk of our own daemon: as on nemu's own disks the driver says when to flush.

    One that does not gets writes that are on stable storage when they are done (5.2.6.2).
    """

    def prepare(self, active: Activation) -> None:
        active.writes[_WRITEBACK, 1] = int(bool(active.features & F_FLUSH))


class VhostUserDisk:
    """One ``--disk``, over all machines of a run.  ``queues``: as many as the machine makes use of."""

    def __init__(self, config: DiskConfig, queues: int, loop: EventLoop, warn: Callable[[str], None]) -> None:
        self._config = config
        self._queues = config.queues or queues
        if config.socket:
            endpoint = SocketEndpoint(f"--disk vhost-user={config.socket}", config.socket)
            self._frontend = Frontend(endpoint, loop, warn, config_size=CONFIG_SIZE)
        else:
            self._frontend = Frontend(
                _daemon(config, self._queues, loop),
                loop,
                warn,
                config_size=CONFIG_SIZE,
                # qemu-storage-daemon 7.2 does this without saying so: libvhost-user, of which it is made,
                # tracks requests in flight for any front end that sets the feature.  Later ones offer it.
                # One that refused would do without, and a request lost with it would stop the device.
                force_inflight=True,
                # It keeps tables of a qcow2 image in memory until they are flushed.
                volatile=config.format == "qcow2" and config.cache == "writeback",
            )
        self._frontend.begin()

    def device(self, name: str, ram: GuestRam) -> VhostUserDevice:
        """The device of a machine.  Raises ConfigError and HostError when there is no usable back end."""
        self._frontend.open()
        queues = self._count()
        # Another's daemon has the cache that its owner chose, and that a driver may change where it says so.
        ours = F_CONFIG_WCE | (F_FLUSH if self._config.cache == "writethrough" else 0)
        return (VhostUserDevice if self._config.socket else VhostUserBlk)(
            name,
            DEVICE_ID,
            self._frontend,
            ram,
            queues=queues,
            queue_size=QUEUE_SIZE,
            own={_NUM_QUEUES: queues.to_bytes(2, "little")},
            features=-1 if self._config.socket else ~ours,
        )

    @property
    def path(self) -> str:
        """The image, or the socket of its back end."""
        return self._config.path or self._config.socket

    @property
    def readonly(self) -> bool:
        return bool(self._frontend.info.features & F_RO)

    @property
    def size(self) -> int:
        """Bytes (5.2.4: capacity, in sectors)."""
        return int.from_bytes(self._frontend.info.config[:8], "little") * SECTOR

    def drain(self) -> None:
        self._frontend.drain()

    def close(self) -> None:
        self._frontend.close()

    def _count(self) -> int:
        """What was asked for, or as many as the machine uses and the back end has."""
        if self._config.queues:
            self._frontend.need_queues(self._config.queues)
            return self._config.queues
        info = self._frontend.info
        return max(1, min(self._queues, info.queues)) if info.features & F_MQ else 1


def _daemon(config: DiskConfig, queues: int, loop: EventLoop) -> ChildEndpoint:
    from nemu.backends.child import Child

    try:
        argv = arguments(config, queues, LISTENER)
    except OSError as error:
        raise ConfigError("--disk", config.path, str(error.strerror)) from error
    listener = PrivateListener()
    child = Child(f"--disk {config.path}", argv, [listener.fd], loop, package=PACKAGE)
    return ChildEndpoint(child, listener)


def arguments(config: DiskConfig, queues: int, listener: int) -> list[str]:
    """The command line of a daemon that serves ``config`` on the listening descriptor ``listener``.

    Raises OSError when there is no such image.
    """
    readonly = "on" if config.readonly else "off"
    path = config.path.replace(",", ",,")
    protocol = "host_device" if stat.S_ISBLK(os.stat(config.path).st_mode) else "file"
    image = (
        f"driver={config.format or 'raw'},node-name=image,read-only={readonly},discard=unmap,"
        f"file.driver={protocol},file.filename={path}"
    )
    argv = [PROGRAM, "--blockdev", image]
    disk = "image"
    if config.iops or config.bps:
        disk = "throttled"
        limits = f"limits.iops-total={config.iops},limits.bps-total={config.bps}"
        filter_node = (
            f"driver=throttle,node-name={disk},throttle-group=limits,file=image,read-only={readonly}"
        )
        argv += ["--object", f"throttle-group,id=limits,{limits}", "--blockdev", filter_node]
    argv += [
        "--export",
        f"type=vhost-user-blk,id=disk,node-name={disk},writable={'off' if config.readonly else 'on'},"
        f"num-queues={queues},addr.type=fd,addr.str={listener}",
    ]
    return argv
