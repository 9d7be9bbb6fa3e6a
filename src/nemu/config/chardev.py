"""Where the bytes of a console go: ``--console`` and ``--serial``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nemu import syntax

CONSOLE = "stdio|null|file=PATH|socket=PATH"
SERIAL = "off|stdio|file=PATH"


class ChardevConfig(NamedTuple):
    """Where a console's bytes go: "stdio", "null", "file", "socket" (a listening Unix socket) or "off"."""

    kind: str
    path: str = ""


class ChardevReader:
    """Reads the forms in ``metavar``, such as ``off|stdio|file=PATH``."""

    def __init__(self, metavar: str) -> None:
        self._forms = metavar.split("|")

    def __call__(self, value: object) -> ChardevConfig:
        kind, equals, path = syntax.text(value).partition("=")
        if (f"{kind}=PATH" if equals else kind) not in self._forms or (equals and not path):
            raise ValueError(f"must be {syntax.either(self._forms)}")
        return ChardevConfig(kind, path)

    def load(self, values: Mapping[str, str]) -> ChardevConfig:
        """The inverse of ``_asdict``.  TypeError for values of anything else."""
        return ChardevConfig(**values)
