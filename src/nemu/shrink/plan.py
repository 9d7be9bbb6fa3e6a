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


def make(records: Iterable[Record], names: Iterable[str], keep: Iterable[str], added: Iterable[str]) -> Plan:
    """The plan for ``records``; ``keep``: patterns the user wants kept; ``added``: files of the profile."""
    records = list(records)
    patterns = [re.compile(fnmatch.translate(pattern)) for pattern in keep]
    read = {name for record in records for name in record.read} | set(added)
    for name in names:
        legal = "/" not in name and _ALWAYS.match(name)
        if legal or any(pattern.match(name) for pattern in patterns):
            read.add(name)
    configured = {name for record in records for name in record.configured} - read
    seen = {name for record in records for name in record.seen} - read - configured
    return Plan(frozenset(read), frozenset(configured), frozenset(seen))


def folders(names: Iterable[str]) -> set[str]:
    """Every folder that has one of ``names`` in it, at any depth."""
    found: set[str] = set()
    for name in names:
        folder = os.path.dirname(name)
        while folder and folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found
