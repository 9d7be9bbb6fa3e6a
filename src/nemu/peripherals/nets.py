"""``--net``: virtio-net on taps, by the host kernel (vhost-net) or here, and on passt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from nemu.errors import ConfigError, HostError
from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.virtio.net import VirtioNet, stable_mac

if TYPE_CHECKING:
    from nemu.backends.netdev import NetBackend
    from nemu.backends.passt import Passt
    from nemu.backends.tap import Tap
    from nemu.config.net import NetConfig
    from nemu.machine import Machine
    from nemu.vhost.net import NetPlane
    from nemu.vhost.user.net import VhostUserNet
    from nemu.virtio.device import VirtioDevice


class Nets(Peripheral):
    """Every network card of the machine."""

    def _open(self, run: Run) -> None:
        self._starting: list[Passt] = []
        self._ports = [self._open_port(net) for net in run.config.nets]

    def _open_port(self, net: NetConfig) -> NetBackend | list[NetPlane] | VhostUserNet:
        """The backend of ``net``, or what serves it in the host kernel or another process."""
        if net.backend == "vhost-user":
            from nemu.vhost.user.net import VhostUserNet

            return self._keep(VhostUserNet(net.socket, self._loop, warn))
        if net.backend == "user":
            from nemu.backends.passt import Passt

            passt = self._keep(Passt(forward=net.forward))
            self._starting.append(passt)
            return passt
        taps = self._open_taps(net)
        return self._open_planes(net, taps) or taps[0]

    def _open_taps(self, net: NetConfig) -> list[Tap]:
        from nemu.backends.tap import inherited_tap, open_tap

        if net.backend == "fd":
            taps = [self._keep(inherited_tap(fd)) for fd in net.fds]
            if len({tap.name for tap in taps}) > 1:
                raise ConfigError("--net", str(net), "must be queues of one tap")
            return taps
        return [self._keep(open_tap(net.tap, queues=net.queues)) for _ in range(net.queues)]

    def _open_planes(self, net: NetConfig, taps: list[Tap]) -> list[NetPlane]:
        """None where the host kernel shall not, or cannot and need not, move the packets."""
        if net.vhost == "off":
            return []
        from nemu.vhost.net import open_planes

        try:
            planes = open_planes(taps, net.vhostfds)
        except HostError as error:
            if net.vhost == "auto" and len(taps) == 1 and not net.vhostfds:
                return []
            needed = ",vhost=on" if net.vhost == "on" else ""
            raise HostError(f"--net {net}{needed}: needs vhost-net: {error}") from error
        return [self._keep(plane) for plane in planes]

    def ready(self) -> None:
        while self._starting:
            self._starting.pop().ready()

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        for number, (config, port) in enumerate(zip(self._config.nets, self._ports, strict=True)):
            name = f"virtio-net{number}"
            identity = port[0].tap.name if isinstance(port, list) else port.name
            mac = bytes.fromhex(config.mac.replace(":", "")) or stable_mac(f"{identity} {number}")
            if isinstance(port, list):
                from nemu.vhost.net import VhostNet

                yield VhostNet(name, port, mac, ram=machine.ram, loop=machine.loop, warn=warn)
            elif config.backend == "vhost-user":
                yield cast("VhostUserNet", port).device(name, mac, machine.ram)
            else:
                yield VirtioNet(name, cast("NetBackend", port), mac, machine.loop, warn)
