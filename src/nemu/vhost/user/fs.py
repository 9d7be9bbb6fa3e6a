"""File systems by vhost-user (virtio 1.2, section 5.11): of a virtiofsd at a socket, or of one of ours."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nemu.config.fs import TAG_MAX
from nemu.vhost.user.device import VhostUserDevice
from nemu.vhost.user.endpoint import ChildEndpoint, PrivateListener, SocketEndpoint
from nemu.vhost.user.frontend import Frontend

if TYPE_CHECKING:
    from collections.abc import Callable

    from nemu.config.fs import FsConfig
    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam

DEVICE_ID = 26
QUEUES = 2  # 5.11.2: one for requests that must not wait, and one for the others, as virtiofsd has it
QUEUE_SIZE = 1024  # Linux makes no request larger than the queue has descriptors: this is for 1 MiB
_CONFIG = struct.Struct(f"<{TAG_MAX}sI")  # 5.11.4: tag, num_request_queues


class VhostUserFs:
    """One ``--fs``, over all machines of a run."""

    def __init__(self, config: FsConfig, loop: EventLoop, warn: Callable[[str], None]) -> None:
        self._config = config
        endpoint = SocketEndpoint(config.option, config.socket) if config.socket else _daemon(config, loop)
        self._frontend = Frontend(
            endpoint,
            loop,
            warn,
            config_size=0,
            # A virtiofsd does not pool threads unless told so.  The next one knows no open file of the one
            # before: it answers what was in flight, and all else until the guest mounts again, with errors.
            in_order=True,
            lasting=True,
        )
        self._frontend.begin()

    def device(self, name: str, ram: GuestRam) -> VhostUserDevice:
        """The device of a machine.  Raises ConfigError and HostError when there is no usable back end."""
        self._frontend.open()
        self._frontend.need_queues(QUEUES)
        return VhostUserDevice(
            name,
            DEVICE_ID,
            self._frontend,
            ram,
            queues=QUEUES,
            queue_size=QUEUE_SIZE,
            own={0: _CONFIG.pack(self._config.tag.encode(), QUEUES - 1)},
        )

    def drain(self) -> None:
        self._frontend.drain()

    def close(self) -> None:
        self._frontend.close()


def _daemon(config: FsConfig, loop: EventLoop) -> ChildEndpoint:
    from functools import partial

    from nemu.backends import mounts
    from nemu.backends.virtiofsd import daemon

    listener = PrivateListener()
    try:
        show = partial(mounts.show_alone, config.dir, readonly=config.readonly)
        return ChildEndpoint(daemon(config.option, show, config.cache, listener.fd, loop), listener)
    except BaseException:
        listener.close()
        raise
