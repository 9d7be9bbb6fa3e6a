"""``--vhost-user``."""

from __future__ import annotations

import os

from nemu.config.vhost_user import VhostUserConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(devices: tuple[VhostUserConfig, ...]) -> None:
    """Raise ConfigError for the first device that cannot work."""
    for index, device in enumerate(devices):
        value = f"socket={device.socket}"
        paths.listening("--vhost-user", value, device.socket)
        if any(os.path.samefile(device.socket, other.socket) for other in devices[:index]):
            raise ConfigError("--vhost-user", value, "is given twice; a back end serves one device")
