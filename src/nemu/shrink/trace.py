"""What a build touches: the system calls of all its processes, as strace(1) shows them.

*Opened* files were read (or run); *seen* ones were only looked at (stat, access).  The difference
matters: a build description that lists a file wants it to be there, but nobody needs what is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_OPENING = ("open", "openat", "openat2", "execve", "execveat")
_SEEING = (
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
)
_CALL = re.compile(r"(\d+)\s+(\w+)\((.*)$")
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. (\w+) resumed>(.*)$")
_RESULT = re.compile(r"\)\s+= (-?\d+|\?)(?:<(.*?)>)?(?: |$)")
_DIRECTORY_FD = re.compile(r"(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, ")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Touched(NamedTuple):
    """Paths relative to the root of the tree."""

    opened: set[str]
    seen: set[str]


def command(log: str) -> list[str]:
    """The start of a command line that runs a program with all its children traced into ``log``.

    strace's ``-z`` (successful calls only) would lose some calls that were interrupted.
    """
    calls = ",".join(f"?{name}" for name in (*_OPENING, *_SEEING))
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-o", log, "-e", f"trace={calls}"]


def parse(lines: Iterable[str], root: str, known: set[str], bases: Iterable[str]) -> Touched:
    """What of ``known`` (relative names below ``root``) the calls in ``lines`` touched.

    ``bases``: directories that a relative name without a descriptor may be relative to.
    """
    found = Finder(root, known, tuple(bases))
    for name, arguments in _calls(lines):
        result = _last(_RESULT, arguments)
        if result is None or result[1].startswith(("-", "?")):
            continue
        opening = name in _OPENING
        if opening and result[2]:
            found.add(_plain(result[2]), opening)
        for path in found.arguments(arguments):
            found.add(path, opening)
    return Touched(found.opened, found.seen - found.opened)


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, arguments and result) of each call, those that were interrupted put together again."""
    pending: dict[str, str] = {}
    for line in lines:
        if call := _CALL.match(line):
            if call[3].endswith("<unfinished ...>"):
                pending[call[1]] = call[3].removesuffix("<unfinished ...>")
            else:
                yield call[2], call[3]
        elif resumed := _RESUMED.match(line):
            yield resumed[2], pending.pop(resumed[1], "") + resumed[3]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed([*pattern.finditer(text)]), None)


def _plain(text: str) -> str:
    """Undo strace's escapes."""
    if "\\" not in text:
        return text
    return text.encode("latin-1", "replace").decode("unicode_escape")


class Finder:
    """Collects names of ``known`` below ``root`` that were touched, with the symbolic links on the way."""

    def __init__(self, root: str, known: set[str], bases: tuple[str, ...]) -> None:
        self.root = os.path.normpath(root)
        self.known = known
        self.bases = bases
        self.opened: set[str] = set()
        self.seen: set[str] = set()
        self._done: dict[str, tuple[str, ...]] = {}

    def arguments(self, text: str) -> Iterator[str]:
        """The absolute paths that the first path argument in ``text`` may stand for."""
        path = _PATH.search(text)
        if path is None:
            return
        name = _plain(path[1])
        if name.startswith("/"):
            yield name
        elif folder := _DIRECTORY_FD.match(text):
            yield os.path.join(_plain(folder[1]), name)
        else:
            yield from (os.path.join(base, name) for base in self.bases)

    def add(self, path: str, opening: bool) -> None:
        names = self._done.get(path)
        if names is None:
            names = self._done[path] = tuple(self._resolve(path))
        (self.opened if opening else self.seen).update(names)

    def _resolve(self, path: str) -> Iterator[str]:
        """``path`` as a known name, and each known symbolic link on the way to it."""
        for _ in range(40):  # as many links as the kernel follows
            path = os.path.normpath(path)
            if not path.startswith(self.root + "/"):
                return
            name = path[len(self.root) + 1 :]
            link = self._link_in(name)
            if link is None:
                if name in self.known:
                    yield name
                return
            yield link
            target = os.path.join(
                self.root, os.path.dirname(link), os.readlink(os.path.join(self.root, link))
            )
            path = target + name[len(link) :]

    def _link_in(self, name: str) -> str | None:
        end = 0
        while end != -1:
            end = name.find("/", end + 1)
            part = name if end == -1 else name[:end]
            if part in self.known and os.path.islink(os.path.join(self.root, part)):
                return part
        return None
