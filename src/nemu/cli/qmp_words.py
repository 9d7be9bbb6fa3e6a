"""The commands of a QMP server as words to type: read, completed and explained, all out of its own schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nemu import syntax


class Argument(NamedTuple):
    """One argument: ``kind`` is its JSON type or "enum"; ``values`` are words to choose from."""

    name: str
    kind: str
    optional: bool
    values: tuple[str, ...]

    def __str__(self) -> str:
        """As a synopsis has it: ``value=INT``, ``[option=STRING]``."""
        text = f"{self.name}={'|'.join(self.values) if self.values else self.kind.upper()}"
        return f"[{text}]" if self.optional else text


class Words:
    """What ``schema``, the result of query-qmp-schema, offers."""

    def __init__(self, schema: list[dict[str, Any]]) -> None:
        self._entities = {one["name"]: one for one in schema}
        self.commands = sorted(one["name"] for one in schema if one["meta-type"] == "command")

    def arguments_of(self, command: str) -> list[Argument]:
        """The arguments of ``command``; none for a command that is not there."""
        if command not in self.commands:
            return []
        members = self._entities[self._entities[command]["arg-type"]].get("members", ())
        return [self._argument(member) for member in members]

    def _argument(self, member: dict[str, Any]) -> Argument:
        entity = self._entities[member["type"]]
        kind = entity.get("json-type", entity["meta-type"])
        values = ("true", "false") if kind == "boolean" else tuple(entity.get("values", ()))
        return Argument(member["name"], kind, "default" in member, values)

    def arguments(self, command: str, words: Sequence[str]) -> dict[str, Any]:
        """``KEY=VALUE`` words as the arguments of ``command``.  Raises ValueError."""
        if command not in self.commands:
            raise ValueError(f"no such command{syntax.nearest(command, self.commands)}")
        kinds = {one.name: one.kind for one in self.arguments_of(command)}
        given: dict[str, Any] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not equals or not key:
                raise ValueError(f"'{word}' must be KEY=VALUE")
            *path, last = key.split(".")
            inner = given
            for part in path:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise ValueError(f"{part} in '{word}' is no object")
            if last in inner:
                raise ValueError(f"{key} is given twice")
            inner[last] = value(text, "" if path else kinds.get(last, ""))
        return given

    def complete(self, line: str) -> list[str]:
        """What the last word of ``line`` can become."""
        *before, word = line.split(" ")
        before = [one for one in before if one]
        if not before:
            return [f"{name} " for name in ("help", *self.commands) if name.startswith(word)]
        if before[0] == "help":
            return [name for name in self.commands if name.startswith(word)]
        given = {one.partition("=")[0] for one in before[1:]}
        return [
            one for one in self._offers(before[0]) if one.startswith(word) and one.split("=")[0] not in given
        ]

    def _offers(self, command: str) -> Iterator[str]:
        for one in self.arguments_of(command):
            yield from (f"{one.name}={choice} " for choice in one.values)
            if not one.values:
                yield f"{one.name}="

    def help(self, command: str = "") -> Iterator[str]:
        """Lines about ``command``, or about all of them."""
        docs = _docs()
        for name in [command] if command else self.commands:
            if name not in self.commands:
                yield f"no such command{syntax.nearest(name, self.commands)}"
                continue
            synopsis = " ".join([name, *map(str, self.arguments_of(name))])
            yield synopsis
            doc = docs.get(name, ("", {}))
            if doc[0]:
                yield f"    {doc[0]}"
            for key, text in doc[1].items() if command else ():
                yield f"    {key}: {text}"


def _docs() -> dict[str, tuple[str, dict[str, str]]]:
    """What nemu's own commands and their arguments do; a schema does not tell."""
    from nemu.qmp import registry, schema

    return {
        name: (one.doc, {member.name: member.doc for member in schema.members(one.arguments)})
        for name, one in registry.commands().items()
    }


def value(text: str, kind: str) -> Any:
    """``text`` as JSON, where that is what ``kind`` wants or nobody knows; else the text itself."""
    if kind in ("string", "enum"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def split(line: str) -> list[str]:
    """The words of a typed line; quotes keep spaces in JSON and text together."""
    return re.findall(r"""(?:[^\s"']|"(?:\\.|[^"])*"|'[^']*')+""", line)
