"""``--net``."""

from __future__ import annotations

from nemu.config.net import NetConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(nets: tuple[NetConfig, ...]) -> None:
    """Raise ConfigError for the first network card that cannot work."""
    for index, net in enumerate(nets):
        if net.backend == "fd":
            paths.descriptor("--net", "fd", net.fd)
        if net.backend == "vhost-user":
            paths.listening("--net", _describe(net), net.socket)
        for other in nets[:index]:
            if net.backend != "user" and net._replace(mac=other.mac) == other:
                raise ConfigError("--net", _describe(net), "is given twice; it serves one network card")
            if net.mac and net.mac == other.mac:
                raise ConfigError("--net", _describe(net), f"mac={net.mac} is given twice")


def _describe(net: NetConfig) -> str:
    values = {"tap": f"tap={net.tap}", "fd": f"fd={net.fd}", "vhost-user": f"vhost-user={net.socket}"}
    return values.get(net.backend, net.backend)
