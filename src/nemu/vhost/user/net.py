"""``--net vhost-user=SOCKET``: a network card on a virtual switch such as those of DPDK and VPP."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nemu.vhost.user.device import VhostUserDevice
from nemu.vhost.user.endpoint import SocketEndpoint
from nemu.vhost.user.frontend import Frontend

if TYPE_CHECKING:
    from collections.abc import Callable

    from nemu.interfaces import EventLoop
    from nemu.memory import GuestRam

DEVICE_ID = 1
QUEUE_SIZE = 256
# 5.1.3: checksum, segmentation of both versions of IP and ECN both ways, mergeable buffers.  Not what needs
# a control queue, which a back end does not serve.
FEATURES = sum(1 << bit for bit in (0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 15))
F_MAC, F_STATUS = 1 << 5, 1 << 16
_CONFIG = struct.Struct("<6sH")  # 5.1.4: mac, status
_LINK_UP = 1


class VhostUserNet:
    """One ``--net``, over all machines of a run."""

    def __init__(self, path: str, loop: EventLoop, warn: Callable[[str], None]) -> None:
        self.name = path
        endpoint = SocketEndpoint(f"--net vhost-user={path}", path)
        # Every back end of a network card takes and gives back buffers in their order; a packet that is sent
        # twice is what networks do.
        self._frontend = Frontend(endpoint, loop, warn, config_size=0, in_order=True)
        self._frontend.begin()

    def device(self, name: str, mac: bytes, ram: GuestRam) -> VhostUserDevice:
        """The device of a machine.  Raises ConfigError and HostError when there is no usable back end."""
        self._frontend.open()
        self._frontend.need_queues(1)  # DPDK counts pairs
        return VhostUserDevice(
            name,
            DEVICE_ID,
            self._frontend,
            ram,
            queues=2,
            queue_size=QUEUE_SIZE,
            own={0: _CONFIG.pack(mac, _LINK_UP)},
            features=FEATURES,
            own_features=F_MAC | F_STATUS,
        )

    def drain(self) -> None:
        self._frontend.drain()

    def close(self) -> None:
        self._frontend.close()
