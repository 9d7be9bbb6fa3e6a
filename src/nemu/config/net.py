"""``--net``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

BACKENDS = {"tap", "fd", "user", "vhost-user"}
_WHICH = "must be tap=NAME, fd=N, user or vhost-user=SOCKET"
TAP_NAME_MAX = 15  # IFNAMSIZ less the terminator


class NetConfig(NamedTuple):
    """A virtio-net device.  ``backend`` is "tap", "fd" (an open tap), "user" (passt) or "vhost-user"."""

    backend: str
    tap: str = ""
    fd: int = -1
    socket: str = ""  # of the vhost-user back end
    mac: str = ""  # "": a stable locally administered address, different for each device

    @classmethod
    def read(cls, value: object) -> NetConfig:
        """From ``tap=NAME|fd=N|user|vhost-user=SOCKET[,mac=ADDRESS]`` or a table with these keys.

        In the table it is ``user = true``.
        """
        if isinstance(value, str):
            parts = syntax.properties(value)
            if parts[0].partition("=")[0] not in BACKENDS:
                raise ValueError(_WHICH)
            value = pairs("user=on" if part == "user" else part for part in parts)
        given = table(
            value,
            tap=_tap_name,
            fd=syntax.integer(0, syntax.FD_MAX),
            user=syntax.switch,
            mac=syntax.mac_address,
            **{"vhost-user": syntax.path},
        )
        if not given.pop("user", True):
            raise ValueError("user can only be on")
        backends = BACKENDS & set(value if isinstance(value, Mapping) else ())
        if len(backends) != 1:
            raise ValueError(_WHICH)
        return cls(backend=backends.pop(), socket=given.pop("vhost-user", ""), **given)


def _tap_name(value: object) -> str:
    name = syntax.text(value)
    if not 1 <= len(name.encode()) <= TAP_NAME_MAX or "/" in name or any(c.isspace() for c in name):
        raise ValueError(f"must be an interface name of 1 to {TAP_NAME_MAX} bytes")
    return name
