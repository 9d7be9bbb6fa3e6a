"""Commands: a function, with its arguments and its result as types.

    @command("getfd")
    def getfd(call: Call, arguments: GetFd) -> None: ...

The first line of its docstring says what it does.  The arguments are an object type of ``schema``; a command
without any takes only ``call``.  A module of commands stands in MODULES.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from nemu.errors import NemuError
from nemu.qmp import schema
from nemu.qmp.errors import CommandNotFoundError, QmpError

if TYPE_CHECKING:
    from nemu.qmp.connection import Connection
    from nemu.session import Session

MODULES = ("control", "status", "machine", "devices", "descriptors", "objects", "backends", "hotplug")


class Call(NamedTuple):
    """Who calls, and what is called upon.  Handlers run in the loop, with the machine lock held."""

    session: Session
    connection: Connection


class Command:
    """One command.  ``oob``: a client may ask for it ahead of commands that wait."""

    def __init__(self, name: str, handler: Callable[..., Any], *, oob: bool) -> None:
        self.name = name
        self.oob = oob
        self._handler = handler

    @property
    def doc(self) -> str:
        """What it does, in a line."""
        return (self._handler.__doc__ or "").partition("\n")[0]

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self._handler, include_extras=True)

    @property
    def arguments(self) -> Any:
        """The object type of its arguments."""
        return self._hints.get("arguments", schema.Nothing)

    @property
    def result(self) -> Any:
        """The type of its result."""
        kind = self._hints["return"]
        return schema.Nothing if kind is type(None) else kind

    def run(self, call: Call, given: dict[str, Any]) -> Any:
        """Check what is ``given``, do it, and give the result as JSON has it.  Raises QmpError."""
        arguments = schema.load(self.arguments, given)
        try:
            result = self._handler(call, arguments) if "arguments" in self._hints else self._handler(call)
        except NemuError as error:
            raise QmpError(str(error)) from error
        return {} if result is None else schema.dump(result)


_COMMANDS: dict[str, Command] = {}


def command(name: str, *, oob: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the function below it the command ``name``."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in _COMMANDS
        _COMMANDS[name] = Command(name, handler, oob=oob)
        return handler

    return register


def commands() -> dict[str, Command]:
    """Every command by its name."""
    for module in MODULES:
        import_module(f"nemu.qmp.commands.{module}")
    return _COMMANDS


def find(name: str) -> Command:
    """Raises CommandNotFoundError."""
    try:
        return commands()[name]
    except KeyError:
        raise CommandNotFoundError(f"The command {name} has not been found") from None
