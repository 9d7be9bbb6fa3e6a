"""``--net``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

TAP_NAME_MAX = 15  # IFNAMSIZ less the terminator


class NetConfig(NamedTuple):
    """A virtio-net device.  ``backend`` is "tap", "fd" (an open tap) or "user" (passt)."""

    backend: str
    tap: str = ""
    fd: int = -1
    mac: str = ""  # "": a stable locally administered address, different for each device

    @classmethod
    def read(cls, value: object) -> NetConfig:
        """From ``tap=NAME|fd=N|user[,mac=ADDRESS]`` or a table with these keys (``user = true``)."""
        if isinstance(value, str):
            parts = syntax.properties(value)
            if parts[0].partition("=")[0] not in ("tap", "fd", "user"):
                raise ValueError("must be tap=NAME, fd=N or user")
            value = pairs("user=on" if part == "user" else part for part in parts)
        given = table(
            value,
            tap=_tap_name,
            fd=syntax.integer(0, syntax.FD_MAX),
            user=syntax.switch,
            mac=syntax.mac_address,
        )
        if not given.pop("user", True):
            raise ValueError("user can only be on")
        backends = {"tap", "fd", "user"} & set(value if isinstance(value, Mapping) else ())
        if len(backends) != 1:
            raise ValueError("must be tap=NAME, fd=N or user")
        return cls(backend=backends.pop(), **given)


def _tap_name(value: object) -> str:
    name = syntax.text(value)
    if not 1 <= len(name.encode()) <= TAP_NAME_MAX or "/" in name or any(c.isspace() for c in name):
        raise ValueError(f"must be an interface name of 1 to {TAP_NAME_MAX} bytes")
    return name
