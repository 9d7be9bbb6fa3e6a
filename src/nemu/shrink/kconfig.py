"""Kconfig, in QEMU's dialect (docs/devel/kconfig.rst there): drop what no configuration switches on.

A symbol that is off in every configuration has no effect, so its ``config`` entry can go, and with it every
``select`` and ``imply`` of it.  What an expression that stays still names keeps a bare entry.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

FILE = "Kconfig"
_SYMBOL = re.compile(r"\b[A-Z0-9_][A-Z0-9_]*\b")
_ENTRY = re.compile(r"config\s+(\w+)\s*(?:#.*)?$")
_SOURCE = re.compile(r"source\s+(\S+)")
_REACHES = re.compile(r"\s+(?:select|imply)\s+(\w+)(.*)$")


@dataclass
class Entry:
    """One ``config NAME`` with its properties, or (without a name) the lines between entries."""

    name: str
    lines: list[str] = field(default_factory=list)


def symbols(root: str) -> set[str]:
    """Every symbol that the Kconfig files below ``root`` define."""
    found = set()
    pending = [FILE]
    while pending:
        name = pending.pop()
        for entry in parse(_read(root, name)):
            if entry.name:
                found.add(entry.name)
        pending += _sources(root, name)
    return found


def files(root: str) -> list[str]:
    """The Kconfig files that the one at the top reads, itself first."""
    order: list[str] = []
    pending = [FILE] if os.path.exists(os.path.join(root, FILE)) else []
    while pending:
        name = pending.pop(0)
        order.append(name)
        pending += _sources(root, name)
    return order


def parse(text: str) -> list[Entry]:
    """The entries of one file, in order."""
    entries = [Entry("")]
    for line in text.splitlines():
        if match := _ENTRY.match(line):
            entries.append(Entry(match[1], [line]))
        elif line and not line[0].isspace():
            entries.append(Entry("", [line]))
        else:
            entries[-1].lines.append(line)
    return [entry for entry in entries if entry.lines]


def prune(root: str, on: set[str], fixed: set[str]) -> set[str]:
    """Drop from the files below ``root`` all that ``on`` (in any configuration) does not need.

    Entries in files of the set ``fixed``, and symbols that it names, stay.  Gives the files that are empty
    now and were deleted.
    """
    names = files(root)
    parsed = {name: parse(_read(root, name)) for name in names}
    kept = {
        entry.name
        for name, entries in parsed.items()
        for entry in entries
        if entry.name in on or entry.name in fixed or name in fixed
    }
    bodies = {name: [_reduce(entry, on, kept) for entry in entries] for name, entries in parsed.items()}
    named = {
        word
        for entries in bodies.values()
        for entry in entries
        if entry.name in kept
        for line in entry.lines[1:]
        for word in _expression_symbols(line)
    }
    gone: set[str] = set()
    for name in reversed(names):
        text = _write(bodies[name], kept, named, name, gone)
        path = os.path.join(root, name)
        if text.strip() or name == FILE:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            os.unlink(path)
            gone.add(name)
    return gone


def _reduce(entry: Entry, on: set[str], kept: set[str]) -> Entry:
    """``entry`` without what it selects or implies in vain."""
    if entry.name not in kept:
        return entry
    lines = []
    for line in entry.lines:
        reaches = _REACHES.match(line)
        if not reaches or reaches[1] in on or reaches[1] in kept:
            lines.append(line)
    return Entry(entry.name, lines)


def _write(entries: list[Entry], kept: set[str], named: set[str], name: str, gone: set[str]) -> str:
    """The new text of the file ``name``; "" when nothing in it matters."""
    lines: list[str] = []
    matters = False
    for entry in entries:
        if not entry.name:
            source = _SOURCE.match(entry.lines[0]) if entry.lines else None
            if source and _beside(name, source[1]) in gone:
                continue
            matters |= source is not None
            lines += entry.lines
        elif entry.name in kept:
            matters = True
            lines += entry.lines
        elif entry.name in named:
            matters = True
            lines += [entry.lines[0], "    bool", ""]
    return "\n".join(lines) + "\n" if matters else ""


def _expression_symbols(line: str) -> set[str]:
    return set(_SYMBOL.findall(line.partition("#")[0]))


def _sources(root: str, name: str) -> list[str]:
    found = (_SOURCE.match(line) for line in _read(root, name).splitlines())
    names = [_beside(name, match[1]) for match in found if match]
    return [one for one in names if os.path.exists(os.path.join(root, one))]


def _beside(name: str, other: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(name), other))


def _read(root: str, name: str) -> str:
    with open(os.path.join(root, name), encoding="utf-8") as file:
        return file.read()
