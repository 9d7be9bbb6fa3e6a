"""``--port``: a named stream between a program in the guest and one on the host."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.chardev import ChardevConfig
from nemu.config.setting import pairs, table

NAME_MAX = 64  # bytes; Linux takes a page less eight
_FORMS = "must be name=NAME with one of socket=PATH, file=PATH and stdio"


class PortConfig(NamedTuple):
    """A virtio-console port that is not a console.  ``name`` is what the guest finds it by."""

    name: str
    kind: str  # as in ChardevConfig: "socket", "file" or "stdio"
    path: str = ""

    @property
    def chardev(self) -> ChardevConfig:
        """Where its bytes go."""
        return ChardevConfig(self.kind, self.path)

    @classmethod
    def read(cls, value: object) -> PortConfig:
        """From ``name=NAME,socket=PATH|file=PATH|stdio`` or a table with these keys (``stdio = true``)."""
        if isinstance(value, str):
            value = pairs("stdio=on" if part == "stdio" else part for part in syntax.properties(value))
        given = table(value, name=_name, socket=syntax.path, file=syntax.path, stdio=syntax.switch)
        name = given.pop("name", "")
        if not name or len(given) != 1 or given.get("stdio", True) is False:
            raise ValueError(_FORMS)
        ((kind, path),) = given.items()
        return cls(name, kind, "" if kind == "stdio" else path)


def _name(value: object) -> str:
    name = syntax.text(value)
    if not 1 <= len(name.encode()) <= NAME_MAX or not name.isascii() or not name.isprintable():
        raise ValueError(f"must have 1 to {NAME_MAX} printable ASCII characters")
    if "/" in name or " " in name:
        raise ValueError("must not contain a slash or a space: it is the name of a link in /dev/virtio-ports")
    return name
