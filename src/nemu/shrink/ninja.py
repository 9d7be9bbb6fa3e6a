"""What ninja itself knows about a build: dependency files that compilers wrote, and the graph.

A trace and this knowledge are taken together: each misses some files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from nemu.shrink import process, trace

_COMPILED = (".o", ".a", ".fa", ".so")
_BUILD = re.compile(r"^build ((?:[^:$\n]|\$.)+):(.*)$", re.MULTILINE)
_COMPILE = re.compile(r" -o (\S+) -c (\S+)")


def inputs(directory: str, goals: Iterable[str], root: str, known: set[str]) -> set[str]:
    """What of ``known`` (names below ``root``) the build in ``directory`` reads to make ``goals``."""
    return _named([["deps"], ["inputs", *goals]], directory, root, known)


def descriptions(directory: str, root: str, known: set[str]) -> set[str]:
    """What of ``known`` the build in ``directory`` was configured from."""
    return _named([["inputs", "build.ninja"]], directory, root, known)


def _named(tools: list[list[str]], directory: str, root: str, known: set[str]) -> set[str]:
    found = trace.Finder(root, known, ())
    for words in tools:
        text = process.output(["ninja", "-C", directory, "-t", *words])
        for line in text.splitlines():
            # Folders are not resolved yet: a symbolic link among them is needed, too.
            found.add(os.path.abspath(os.path.join(directory, line.strip())), opening=True)
    return found.opened


def compiles(directory: str, goals: Iterable[str], root: str) -> list[str]:
    """``output < source`` for each file that is compiled for ``goals``."""
    text = process.output(["ninja", "-C", directory, "-t", "commands", *goals])
    found = {(match[1], match[2]) for match in _COMPILE.finditer(text)}
    plain = ((out, os.path.normpath(os.path.join(directory, source))) for out, source in found)
    return sorted(
        f"{out} < {source.replace(root + '/', '').replace(directory, '.')}" for out, source in plain
    )


def generated(directory: str, goals: Iterable[str]) -> list[str]:
    """What is needed for ``goals`` and made by scripts from scripts and data: nothing in it was compiled."""
    needed = set(process.output(["ninja", "-C", directory, "-t", "inputs", *goals]).splitlines())
    with open(os.path.join(directory, "build.ninja"), encoding="utf-8") as file:
        edges = dict(statements(file.read()))
    compiled: dict[str, bool] = {}

    def is_compiled(name: str) -> bool:
        if name not in compiled:
            compiled[name] = name.endswith(_COMPILED)  # also ends a circle, which ninja would refuse
            compiled[name] |= any(is_compiled(other) for other in edges.get(name, ("", ()))[1])
        return compiled[name]

    custom = {name for name, (rule, _) in edges.items() if rule.startswith("CUSTOM_COMMAND")}
    return sorted(name for name in needed & custom if not is_compiled(name))


def statements(text: str) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """(output, (rule, inputs of every kind)) of each build statement in a ninja file."""
    for match in _BUILD.finditer(text.replace("$\n", "")):
        outputs = _split(match[1].replace("|", " "))
        rule, *inputs = _split(match[2].replace("||", " ").replace("|", " "))
        for output in outputs:
            yield output, (rule, tuple(inputs))


def _split(text: str) -> list[str]:
    """The paths in ``text``, ninja's escapes undone."""
    marked = text.replace("$$", "\0").replace("$ ", "\1").replace("$:", ":")
    return [word.replace("\0", "$").replace("\1", " ") for word in marked.split()]
