"""Python types as QMP types: one statement gives the checks, the encoding and the introspection.

An object is a NamedTuple; each member is ``Annotated[TYPE, "what it is"]``, optional where it has a default.
Its name on the wire has a dash for each underscore, or is a ``Wire`` among the annotations.  Types are str,
int, bool, float, Any, an Enum of strings, ``list[TYPE]`` and other objects (QEMU's docs/devel/qapi-code-gen).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from nemu.qmp.errors import QmpError

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


class Wire(NamedTuple):
    """The name of a member in JSON."""

    name: str


class Rest:
    """Among the annotations of a ``dict[str, Any]``: it gets the members that the type does not name.

    Which there are depends on others; introspection does not tell of them.
    """


class Nothing(NamedTuple):
    """No members: the arguments and the result of most commands."""


class Member(NamedTuple):
    """One member of an object."""

    field: str
    name: str
    type: Any
    optional: bool
    doc: str


# Builtin types: Python's, QEMU's name, JSON type of introspection, the word in an error.
_BUILTINS: dict[Any, tuple[str, str, str]] = {
    str: ("str", "string", "string"),
    int: ("int", "int", "integer"),
    bool: ("bool", "boolean", "boolean"),
    float: ("number", "number", "number"),
    Any: ("any", "value", "value"),
}


def is_object(kind: Any) -> bool:
    """Whether ``kind`` is the type of an object."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


@cache
def members(kind: Any) -> tuple[Member, ...]:
    """The members of the object type ``kind``."""
    hints = get_type_hints(kind, include_extras=True)
    rest = rest_of(kind)
    return tuple(_member(kind, field, hints[field]) for field in kind._fields if field != rest)


@cache
def rest_of(kind: Any) -> str | None:
    """The field of the object type ``kind`` that is a Rest, None where it has none."""
    hints = get_type_hints(kind, include_extras=True)
    return next((field for field in kind._fields if Rest in getattr(hints[field], "__metadata__", ())), None)


def _member(kind: Any, field: str, hint: Any) -> Member:
    name, doc = field.replace("_", "-"), ""
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        doc = next((note for note in notes if isinstance(note, str)), "")
        name = next((note.name for note in notes if isinstance(note, Wire)), name)
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not types.NoneType)
    return Member(field, name, hint, field in kind._field_defaults, doc)


# --- from JSON --------------------------------------------------------------------------------


def load(kind: Any, value: Any, where: str = "") -> Any:
    """``value``, as JSON has it, as a ``kind``.  Raises QmpError with QEMU's words; ``where`` names it."""
    if kind is Any:
        return value
    if kind in _BUILTINS:
        return _load_builtin(kind, value, where)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise _wrong_type(where, "array")
        (element,) = get_args(kind)
        return [load(element, one, f"{where}[{index}]") for index, one in enumerate(value)]
    if is_object(kind):
        return _load_object(kind, value, where)
    if not isinstance(value, str):
        raise _wrong_type(where, "string")
    try:
        return kind(value)
    except ValueError:
        raise QmpError(f"Parameter '{where}' does not accept value '{value}'") from None


def _load_builtin(kind: Any, value: Any, where: str) -> Any:
    fits = isinstance(value, int | float if kind is float else kind)
    if fits and isinstance(value, bool) and kind is not bool:
        fits = False
    if fits and kind is int:
        fits = INT_MIN <= value <= INT_MAX
    if not fits:
        raise _wrong_type(where, _BUILTINS[kind][2])
    return value


def _load_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong_type(where, "object")
    given = dict(value)
    found: dict[str, Any] = {}
    prefix = f"{where}." if where else ""
    for member in members(kind):
        if member.name in given:
            found[member.field] = load(member.type, given.pop(member.name), prefix + member.name)
        elif not member.optional:
            raise QmpError(f"Parameter '{prefix}{member.name}' is missing")
    if (rest := rest_of(kind)) is not None:
        found[rest] = given
        given = {}
    for name in given:
        raise QmpError(f"Parameter '{prefix}{name}' is unexpected")
    return kind(**found)


def _wrong_type(where: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{where}', expected: {expected}")


# --- to JSON ----------------------------------------------------------------------------------


def dump(value: Any) -> Any:
    """``value`` as JSON has it; members that are None are left out."""
    if isinstance(value, Enum):
        return value.value
    kind: Any = type(value)
    if is_object(kind):
        pairs = ((member.name, getattr(value, member.field)) for member in members(kind))
        return {name: dump(one) for name, one in pairs if one is not None}
    if isinstance(value, list):
        return [dump(one) for one in value]
    return value


# --- introspection ----------------------------------------------------------------------------


class Introspection:
    """The entities of ``query-qmp-schema`` (qapi/introspect.json), types under numbers as QEMU masks them."""

    def __init__(self) -> None:
        self.entities: list[dict[str, Any]] = []
        self._names: dict[Any, str] = {}
        self._next = 0

    def add(self, name: str, meta_type: str, **details: Any) -> None:
        """A command or an event."""
        self.entities.append({"name": name, "meta-type": meta_type, **details})

    def type_name(self, kind: Any) -> str:
        """What ``kind`` is called here; it is added when it is new."""
        if kind in self._names:
            return self._names[kind]
        if kind in _BUILTINS:
            name, json_type, _ = _BUILTINS[kind]
            self._names[kind] = name
            self.add(name, "builtin", **{"json-type": json_type})
            return name
        if get_origin(kind) is list:
            (element,) = get_args(kind)
            return self._added(kind, "array", "[{}]", lambda: {"element-type": self.type_name(element)})
        if is_object(kind):
            return self._added(kind, "object", "{}", lambda: {"members": list(self._members(kind))})
        return self._added(kind, "enum", "{}", lambda: _enum(kind))

    def _added(self, kind: Any, meta_type: str, shape: str, details: Callable[[], dict[str, Any]]) -> str:
        name = self._names[kind] = shape.format(self._next)
        self._next += 1
        self.add(name, meta_type, **details())
        return name

    def _members(self, kind: Any) -> Iterator[dict[str, Any]]:
        for member in members(kind):
            optional = {"default": None} if member.optional else {}
            yield {"name": member.name, "type": self.type_name(member.type), **optional}


def _enum(kind: Any) -> dict[str, Any]:
    values = [one.value for one in kind]
    return {"members": [{"name": value} for value in values], "values": values}
