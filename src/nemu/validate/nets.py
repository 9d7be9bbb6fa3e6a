"""``--net``."""

from __future__ import annotations

import errno

from nemu.config.net import Forward, NetConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(nets: tuple[NetConfig, ...]) -> None:
    """Raise ConfigError for the first network card that cannot work."""
    names: set[str] = set()
    fds: set[int] = set()
    for index, net in enumerate(nets):
        for key in ("fds", "vhostfds"):
            for fd in getattr(net, key):
                paths.descriptor("--net", key.removesuffix("s") if len(getattr(net, key)) == 1 else key, fd)
                if fd in fds:
                    raise ConfigError("--net", str(net), f"descriptor {fd} is given twice")
                fds.add(fd)
        if net.backend == "vhost-user":
            paths.listening("--net", str(net), net.socket)
        if net.backend in ("tap", "vhost-user") and str(net) in names:
            raise ConfigError("--net", str(net), "is given twice; it serves one network card")
        names.add(str(net))
        for other in nets[:index]:
            _check_pair(net, other)
        for forward in net.forward:
            _check_free(net, forward)


def _check_pair(net: NetConfig, other: NetConfig) -> None:
    if net.mac and net.mac == other.mac:
        raise ConfigError("--net", str(net), f"mac={net.mac} is given twice")
    for one in net.forward:
        for taken in other.forward:
            if one.clashes(taken):
                value = f"{net},forward={one}"
                raise ConfigError("--net", value, f"another network card has forward={taken}")


def _check_free(net: NetConfig, forward: Forward) -> None:
    """Bind the port for a moment: passt itself is content when it gets one address of two."""
    import socket

    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    for address in [forward.address] if forward.address else ["0.0.0.0", "::"]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, kind) as trial:
                if kind == socket.SOCK_STREAM:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind((address, forward.port))
        except OSError as error:
            if address == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue  # a host without IPv6
            problem = f"cannot listen there: {(error.strerror or str(error)).lower()}"
            raise ConfigError("--net", f"{net},forward={forward}", problem) from None
