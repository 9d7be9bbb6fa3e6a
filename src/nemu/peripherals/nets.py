"""``--net``: virtio-net on taps, by the host kernel (vhost-net) or here, and on passt."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from nemu.errors import ConfigError, HostError
from nemu.peripherals.kind import Backends, Peripheral, Run, warn
from nemu.virtio.net import VirtioNet, stable_mac

if TYPE_CHECKING:
    from nemu.backends.netdev import NetBackend
    from nemu.backends.passt import Passt
    from nemu.backends.tap import Tap
    from nemu.config.net import NetConfig
    from nemu.loop import Loop
    from nemu.machine import Machine
    from nemu.vhost.net import NetPlane
    from nemu.vhost.user.net import VhostUserNet
    from nemu.virtio.device import VirtioDevice


class Port(Backends):
    """The host's side of a network card.  Raises ConfigError, HostError.

    The descriptors in ``config`` are closed in any case.  It is a backend that moves packets, or what has
    them moved in the host kernel or in another process.
    """

    def __init__(self, config: NetConfig, loop: Loop) -> None:
        super().__init__()
        self._starting: Passt | None = None
        self._backend: NetBackend | None = None
        self._planes: list[NetPlane] = []
        self._user: VhostUserNet | None = None
        self._unclaimed = [*config.fds, *config.vhostfds]
        try:
            self._open(config, loop)
        except BaseException:
            self.close()
            for fd in self._unclaimed:
                with suppress(OSError):
                    os.close(fd)
            raise

    def ready(self) -> None:
        """Wait until passt has set itself up.  Raises HostError."""
        starting, self._starting = self._starting, None
        if starting:
            starting.ready()

    def device(self, name: str, mac: str, salt: str, machine: Machine) -> VirtioDevice:
        """A network card with address ``mac``, or one that is stable for this port and ``salt``."""
        given = bytes.fromhex(mac.replace(":", ""))
        if self._planes:
            from nemu.vhost.net import VhostNet

            address = given or stable_mac(f"{self._planes[0].tap.name} {salt}")
            return VhostNet(name, self._planes, address, ram=machine.ram, loop=machine.loop, warn=warn)
        if self._user:
            return self._user.device(name, given or stable_mac(f"{self._user.name} {salt}"), machine.ram)
        assert self._backend
        address = given or stable_mac(f"{self._backend.name} {salt}")
        return VirtioNet(name, self._backend, address, machine.loop, warn)

    def drain(self) -> None:
        if self._user:
            self._user.drain()

    def _open(self, net: NetConfig, loop: Loop) -> None:
        if net.backend == "vhost-user":
            from nemu.vhost.user.net import VhostUserNet

            self._user = self._keep(VhostUserNet(net.socket, loop, warn))
        elif net.backend == "user":
            from nemu.backends.passt import Passt

            self._backend = self._starting = self._keep(Passt(forward=net.forward))
        else:
            taps = self._open_taps(net)
            self._backend = taps[0]
            self._planes = self._open_planes(net, taps)

    def _open_taps(self, net: NetConfig) -> list[Tap]:
        from nemu.backends.tap import inherited_tap, open_tap

        if net.backend == "fd":
            taps = []
            for fd in net.fds:
                taps.append(self._keep(inherited_tap(fd)))
                self._unclaimed.remove(fd)
            if len({tap.name for tap in taps}) > 1:
                raise ConfigError("--net", str(net), "must be queues of one tap")
            return taps
        return [self._keep(open_tap(net.tap, queues=net.queues)) for _ in range(net.queues)]

    def _open_planes(self, net: NetConfig, taps: list[Tap]) -> list[NetPlane]:
        """None where the host kernel shall not, or cannot and need not, move the packets."""
        if net.vhost == "off":
            return []
        from nemu.vhost.net import open_planes

        self._unclaimed.clear()
        try:
            planes = open_planes(taps, net.vhostfds)
        except HostError as error:
            if net.vhost == "auto" and len(taps) == 1 and not net.vhostfds:
                return []
            needed = ",vhost=on" if net.vhost == "on" else ""
            raise HostError(f"--net {net}{needed}: needs vhost-net: {error}") from error
        return [self._keep(plane) for plane in planes]


class Nic(Peripheral):
    """One network card; ``backend`` may be a Port."""

    PREFIX = "virtio-net"
    REMOVABLE = True

    def _open(self, run: Run) -> None:
        self._port: Port = self.backend or self._keep(Port(self._config, run.loop))

    def ready(self) -> None:
        self._port.ready()

    def device(self, machine: Machine) -> VirtioDevice:
        return self._port.device(self.name, self._config.mac, str(self._number), machine)

    def drain(self) -> None:
        self._port.drain()
