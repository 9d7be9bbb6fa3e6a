"""``--qmp``."""

from __future__ import annotations

import os
import stat

from nemu.config.qmp import QmpConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(sockets: tuple[QmpConfig, ...]) -> None:
    """Raise ConfigError for the first socket that cannot serve clients."""
    for index, one in enumerate(sockets):
        if one in sockets[:index]:
            raise ConfigError("--qmp", one, "is given twice")
        if one.kind == "unix":
            paths.socket("--qmp", one.path)
        if one.kind == "fd":
            _check_descriptor(one)


def _check_descriptor(config: QmpConfig) -> None:
    try:
        mode = os.fstat(config.fd).st_mode
    except OSError:
        raise ConfigError("--qmp", config, "no such open descriptor was inherited") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError("--qmp", config, "is not a socket")
