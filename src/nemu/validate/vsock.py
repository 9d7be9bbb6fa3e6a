"""``--vsock``."""

from __future__ import annotations

import os

from nemu.config.vsock import VsockConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(vsock: VsockConfig) -> None:
    """Raise ConfigError for a socket device that cannot work."""
    if vsock.socket:
        _check_socket(vsock.socket)
    if vsock.vhostfd >= 0:
        paths.descriptor("--vsock", "vhostfd", vsock.vhostfd)


def _check_socket(path: str) -> None:
    longest = paths.SOCKET_PATH_MAX - len("_4294967294")  # which the socket of a port is named
    if len(os.fsencode(path)) > longest:
        raise ConfigError("--vsock", f"socket={path}", f"must have at most {longest} bytes")
    paths.socket("--vsock", path)
