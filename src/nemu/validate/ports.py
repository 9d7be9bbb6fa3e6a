"""``--port``."""

from __future__ import annotations

from nemu.config.port import PortConfig
from nemu.errors import ConfigError
from nemu.validate import paths

MAX_PORTS = 30  # two queues each: well within the vectors of one device


def check(ports: tuple[PortConfig, ...]) -> None:
    """Raise ConfigError for the first port that cannot work."""
    if len(ports) > MAX_PORTS:
        raise ConfigError("--port", "", f"{len(ports)} ports are too many: at most {MAX_PORTS}")
    for index, port in enumerate(ports):
        for other in ports[:index]:
            if port.name == other.name:
                raise ConfigError(
                    "--port", f"name={port.name}", "is given twice; the guest finds a port by it"
                )
            if port.chardev == other.chardev:
                raise ConfigError("--port", f"name={port.name}", f"has the {port.kind} of name={other.name}")
        if port.kind == "file":
            paths.output("--port", port.path)
        elif port.kind == "socket":
            paths.socket("--port", port.path)
