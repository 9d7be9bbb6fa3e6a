"""What is in a program that was built: sizes, shared libraries, symbols, read by readelf(1) and nm(1)."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field

from nemu.shrink import process

_SECTION = re.compile(r"^\s*\[\s*\d+\]\s+(\S+)\s+\S+\s+[0-9a-f]+\s+[0-9a-f]+\s+([0-9a-f]+)", re.MULTILINE)
# What a compiler appends to the name of a copy that it made of a function.
_CLONE = re.compile(r"\.(?:constprop|isra|part|cold|lto_priv|localalias|llvm)(?:\.\d+)*")


@dataclass
class Program:
    """``size`` in bytes when stripped; ``text`` is code and constants, as size(1) counts them."""

    size: int = 0
    text: int = 0
    libraries: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure(path: str, stripped: str, strip: str = "strip") -> Program:
    """Measure the program ``path``; its stripped copy is written to ``stripped``."""
    process.output([strip, "-o", stripped, path])
    # Constants count as size(1) counts them: all allocated sections that are not writable.
    text = process.output(["size", stripped]).splitlines()[1].split()[0]
    dynamic = process.output(["readelf", "-dW", stripped])
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    return Program(os.path.getsize(stripped), int(text), sorted(libraries))


def symbols(path: str) -> list[str]:
    """The names of all functions and objects in the program ``path``, copies under their own name."""
    found = set()
    for line in process.output(["nm", "--defined-only", "--format=posix", path]).splitlines():
        name, kind = line.split()[:2]
        if kind.lower() in "tdrbvwuig":
            found.add(_CLONE.sub("", name))
    return sorted(found)
