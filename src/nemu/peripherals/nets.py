"""``--net``: virtio-net on taps and passt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from nemu.peripherals.kind import Peripheral, Run, warn
from nemu.virtio.net import VirtioNet, stable_mac

if TYPE_CHECKING:
    from nemu.backends.netdev import NetBackend
    from nemu.backends.passt import Passt
    from nemu.config.net import NetConfig
    from nemu.machine import Machine
    from nemu.vhost.user.net import VhostUserNet
    from nemu.virtio.device import VirtioDevice


class Nets(Peripheral):
    """Every network card of the machine."""

    def _open(self, run: Run) -> None:
        self._starting: list[Passt] = []
        self._ports = [self._open_port(net) for net in run.config.nets]

    def _open_port(self, net: NetConfig) -> NetBackend | VhostUserNet:
        if net.backend == "vhost-user":
            from nemu.vhost.user.net import VhostUserNet

            return self._keep(VhostUserNet(net.socket, self._loop, warn))
        if net.backend == "user":
            from nemu.backends.passt import Passt

            passt = self._keep(Passt())
            self._starting.append(passt)
            return passt
        from nemu.backends.tap import inherited_tap, open_tap

        return self._keep(inherited_tap(net.fd) if net.backend == "fd" else open_tap(net.tap))

    def ready(self) -> None:
        while self._starting:
            self._starting.pop().ready()

    def devices(self, machine: Machine) -> Iterator[VirtioDevice]:
        for number, (config, port) in enumerate(zip(self._config.nets, self._ports, strict=True)):
            mac = bytes.fromhex(config.mac.replace(":", "")) or stable_mac(f"{port.name} {number}")
            name = f"virtio-net{number}"
            if config.backend == "vhost-user":
                yield cast("VhostUserNet", port).device(name, mac, machine.ram)
            else:
                yield VirtioNet(name, cast("NetBackend", port), mac, machine.loop, warn)
