"""``--vsock``."""

from __future__ import annotations

from nemu.config.vsock import VsockConfig
from nemu.validate import paths


def check(vsock: VsockConfig) -> None:
    """Raise ConfigError for a socket device that cannot work."""
    if vsock.socket:
        paths.socket("--vsock", vsock.socket)
    if vsock.vhostfd >= 0:
        paths.descriptor("--vsock", "vhostfd", vsock.vhostfd)
