"""Functions that no configuration links, removed from the source.

Each configuration is linked with a section for every function and object, so that the linker drops what
nothing reaches; the symbols that are left, in union over all configurations, are *live*.  A definition goes
when its name is not live and nothing that stays names it: not code, not a macro, not a generated file.
That is a mark and sweep over identifiers, so that groups of functions that only call one another go together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from nemu.shrink import csource
from nemu.shrink.csource import Unit


@dataclass
class Removal:
    """New contents by file name, and what was removed: (file, name)."""

    texts: dict[str, bytes] = field(default_factory=dict)
    functions: list[tuple[str, str]] = field(default_factory=list)


def find(root: str, names: Iterable[str], live: set[str], spared: set[str], scope: Iterable[str]) -> Removal:
    """What to remove from the files ``names`` below ``root``.

    ``live``: symbols of the linked programs, and identifiers in generated sources.  ``spared``: names that
    stay whatever is known of them.  ``scope``: the files that may be changed.
    """
    parse = csource.parser()
    units: dict[str, Unit] = {}
    roots: set[str] = set(spared)
    texts: dict[str, bytes] = {}
    allowed = {*scope}
    for name in names:
        path = os.path.join(root, name)
        if os.path.islink(path):
            continue
        with open(path, "rb") as file:
            text = file.read()
        if name in allowed and name.endswith(csource.SUFFIXES):
            texts[name] = text
            units[name] = csource.read(text, parse)
            roots |= units[name].words
        elif b"\0" not in text[:1024]:
            roots |= csource.words(text)
    dead, named = _sweep(units, live | spared, roots)
    return _cut(texts, units, dead, live | named)


def _sweep(units: dict[str, Unit], live: set[str], roots: set[str]) -> tuple[set[str], set[str]]:
    """The defined names that are neither live nor reached from ``roots``, and all names in what stays."""
    bodies: dict[str, list[frozenset[str]]] = {}
    for unit in units.values():
        for definition in unit.definitions:
            bodies.setdefault(definition.name, []).append(definition.words)
    named = set(roots)
    pending = [name for name in bodies if name in live or name in roots]
    reached = set(pending)
    while pending:
        for words in bodies[pending.pop()]:
            named |= words
            fresh = {word for word in words if word in bodies} - reached
            reached |= fresh
            pending += fresh
    return set(bodies) - reached, named


def _cut(texts: dict[str, bytes], units: dict[str, Unit], dead: set[str], needed: set[str]) -> Removal:
    """Cut out the definitions in ``dead``, and prototypes of what is not in ``needed``."""
    removal = Removal()
    for name, unit in units.items():
        parts = [one for one in unit.definitions if one.name in dead]
        removal.functions += [(name, one.name) for one in parts]
        parts += [one for one in unit.prototypes if one.name not in needed]
        if parts:
            removal.texts[name] = csource.without(texts[name], parts)
    return removal
