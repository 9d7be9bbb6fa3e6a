"""``--vhost-user``: devices of any type, on back ends of the user's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.vhost.user.device import VhostUserDevice
from nemu.vhost.user.endpoint import SocketEndpoint
from nemu.vhost.user.frontend import Frontend

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice

# Virtio 1.2, section 5: queues of the types that have more than one.
_QUEUES = {1: 2, 3: 2, 5: 2, 8: 3, 16: 2, 18: 2, 19: 3, 20: 2, 23: 2, 25: 4, 26: 2, 41: 2}
_FS_CONFIG = struct.Struct("<36sI")  # 5.11.4: tag, num_request_queues
# Network cards and disks come back after their connection ended; most other back ends end with it.
_RECONNECTING = {1, 2}


class VhostUser(Peripheral):
    """One such device."""

    PREFIX = "vhost-user"
    REMOVABLE = True

    def _open(self, run: Run) -> None:
        config = self._config
        endpoint = SocketEndpoint(f"--vhost-user type={config.type},socket={config.socket}", config.socket)
        lasting = config.type not in _RECONNECTING
        self._frontend = self._keep(Frontend(endpoint, self._loop, warn, lasting=lasting))
        self._frontend.begin()

    def device(self, machine: Machine) -> VirtioDevice:
        config, frontend = self._config, self._frontend
        frontend.open()
        queues = config.queues or _QUEUES.get(config.type, 1)
        frontend.need_queues(queues)
        return VhostUserDevice(
            self.name,
            config.type,
            frontend,
            machine.ram,
            queues=queues,
            queue_size=config.queue_size,
            own={0: _FS_CONFIG.pack(config.tag.encode(), queues - 1)} if config.tag else None,
        )

    def drain(self) -> None:
        self._frontend.drain()
