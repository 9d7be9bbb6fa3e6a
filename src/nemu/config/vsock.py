"""``--vsock``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

# 2 is the host, 2**32 - 1 any address (linux/vm_sockets.h)
CID_MIN, CID_MAX = 3, (1 << 32) - 2


class VsockConfig(NamedTuple):
    """A virtio-vsock device.  The guest's address is ``cid``.

    With ``socket``, the path of a Unix socket, the host's side is that socket and those named after the
    ports; else it is AF_VSOCK of the host kernel, by ``vhostfd`` (/dev/vhost-vsock, open; -1: nemu opens it).
    """

    cid: int
    socket: str = ""
    vhostfd: int = -1

    @classmethod
    def read(cls, value: object) -> VsockConfig:
        """From ``cid=N[,socket=PATH|,vhostfd=N]`` or a table with these keys."""
        if isinstance(value, str):
            value = pairs(syntax.properties(value))
        given = table(
            value,
            cid=syntax.integer(CID_MIN, CID_MAX),
            socket=syntax.path,
            vhostfd=syntax.integer(0, syntax.FD_MAX),
        )
        if "cid" not in given:
            raise ValueError("needs cid=N, the guest's address")
        if "socket" in given and "vhostfd" in given:
            raise ValueError("takes socket or vhostfd, not both")
        return cls(**given)
