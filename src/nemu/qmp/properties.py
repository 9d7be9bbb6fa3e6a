"""The arguments of commands that take different ones for each driver, as QEMU has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nemu.qmp.errors import QmpError

_TRUE, _FALSE = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


def identifier(value: Any) -> str:
    """A name that a client gives to something."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value) or len(value) > 127:
        raise ValueError("an identifier")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("text")
    return value


def boolean(value: Any) -> bool:
    """True and false, or QEMU's words for them."""
    if isinstance(value, bool):
        return value
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise ValueError("'on' or 'off'")


def integer(low: int, high: int) -> Callable[[Any], int]:
    """A number, or its decimal digits."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a number from {low} to {high}")
        return value

    return read


def words(*known: str) -> Callable[[Any], str]:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(" or ".join(f"'{word}'" for word in known))
        return str(value)

    return read


class Properties:
    """What is ``given`` to a thing of type ``owner``; each is taken once, and ``done`` refuses the rest."""

    def __init__(self, owner: str, given: dict[str, Any]) -> None:
        self._owner = owner
        self._given = dict(given)

    def need(self, name: str, read: Callable[[Any], Any]) -> Any:
        """Raises QmpError without it, and for a value that ``read`` refuses by ValueError."""
        if name not in self._given:
            raise QmpError(f"Parameter '{name}' is missing")
        return self.take(name, read)

    def take(self, name: str, read: Callable[[Any], Any], default: Any = None) -> Any:
        """The same, or ``default`` without it."""
        if name not in self._given:
            return default
        try:
            return read(self._given.pop(name))
        except ValueError as error:
            raise QmpError(f"Parameter '{name}' expects {error}") from None

    def ignore(self, **readers: Callable[[Any], Any]) -> None:
        """Those with these names (a dash for each underscore) are checked, and mean nothing here."""
        for name, read in readers.items():
            self.take(name.replace("_", "-"), read)

    def done(self) -> None:
        """Raises QmpError for what nobody has taken."""
        for name in self._given:
            raise QmpError(f"Property '{self._owner}.{name}' not found")
