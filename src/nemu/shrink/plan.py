"""What to keep: the union over all builds of what each one needs."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nemu.shrink.record import Record

# Whoever gets the tree has to get its licenses with it, and the usual way to build it.
_ALWAYS = re.compile(
    r"(Makefile|COPYING|LICEN[CS]E|COPYRIGHT|NOTICE|AUTHORS|MAINTAINERS|VERSION|README)([.\-_].*)?$", re.I
)


@dataclass(frozen=True)
class Plan:
    """Names of files, each in one set.

    ``read``: some build compiles or reads it.  ``configured``: read only while configuring.  ``seen``: has to
    be there, for all that was recorded, but is never opened.
    """

    read: frozenset[str]
    configured: frozenset[str]
    seen: frozenset[str]


def make(
    root: str, names: list[str], records: Iterable[Record], keep: Iterable[str], added: Iterable[str]
) -> Plan:
    """The plan for the tree ``root`` with the files ``names``.

    ``keep``: patterns the user wants kept; ``added``: files of the profile.
    """
    records = list(records)
    patterns = [re.compile(fnmatch.translate(pattern)) for pattern in keep]
    read = {name for record in records for name in record.read} | set(added)
    for name in names:
        legal = "/" not in name and _ALWAYS.match(name)
        if legal or any(pattern.match(name) for pattern in patterns):
            read.add(name)
    read |= _links_to(root, read, names)
    configured = {name for record in records for name in record.configured} - read
    seen = {name for record in records for name in record.seen} - read - configured
    return Plan(frozenset(read), frozenset(configured), frozenset(seen))


def _links_to(root: str, read: set[str], names: list[str]) -> set[str]:
    """Symbolic links that lead to something in ``read``: a build may come that way, and they cost nothing."""
    targets = read | folders(read)
    found = set()
    for name in names:
        path = os.path.join(root, name)
        if os.path.islink(path):
            target = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(path)))
            found |= {name} if target in targets else set()
    return found


def folders(names: Iterable[str]) -> set[str]:
    """Every folder that has one of ``names`` in it, at any depth."""
    found: set[str] = set()
    for name in names:
        folder = os.path.dirname(name)
        while folder and folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found
