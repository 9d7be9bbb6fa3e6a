"""``--qmp``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax

LOOPBACK = "127.0.0.1"
FORMS = f"PATH|fd=N|tcp={LOOPBACK}:PORT|off"


class QmpConfig(NamedTuple):
    """Where QMP clients come in.

    ``kind`` is "unix" (a listening socket at ``path``), "fd" (an inherited socket, listening or
    connected), "tcp" (``port`` on the loopback interface) or "off" (no socket in the run directory).
    """

    kind: str
    path: str = ""
    fd: int = -1
    port: int = 0

    def __str__(self) -> str:
        """As it is written on the command line."""
        words = {"unix": self.path, "fd": f"fd={self.fd}", "tcp": f"tcp={LOOPBACK}:{self.port}"}
        return words.get(self.kind, self.kind)

    @classmethod
    def read(cls, value: object) -> QmpConfig:
        """From ``PATH``, ``fd=N``, ``tcp=127.0.0.1:PORT`` or ``off``."""
        text = syntax.path(value)
        kind, equals, rest = text.partition("=")
        if text == "off":
            return cls("off")
        if equals and kind == "fd":
            return cls("fd", fd=syntax.integer(0, 1 << 20)(rest))
        if equals and kind == "tcp":
            address, _, port = rest.rpartition(":")
            if address != LOOPBACK:
                raise ValueError(f"must be tcp={LOOPBACK}:PORT: whoever reaches it controls the machine")
            return cls("tcp", port=syntax.integer(1, 65535)(port))
        return cls("unix", path=text)
