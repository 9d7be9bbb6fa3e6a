"""Open files that clients hand over (SCM_RIGHTS, unix(7)): under names, and in sets.

Threat: a client sends descriptors without end.  What is kept is bounded, and closed when nobody is left who
could use it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from nemu.qmp.errors import QmpError

MAX_RECEIVED = 16  # that no command has taken yet
MAX_NAMED = 128
MAX_IN_SETS = 128


class Inbox:
    """What came with the messages of one client, and the names that it gave to some of it."""

    def __init__(self) -> None:
        self._received: deque[int] = deque()
        self._named: dict[str, int] = {}

    def receive(self, fds: list[int]) -> None:
        """Keep the last few until a command takes them."""
        self._received.extend(fds)
        while len(self._received) > MAX_RECEIVED:
            os.close(self._received.popleft())

    def take(self) -> int:
        """The oldest one, which the caller owns then.  Raises QmpError."""
        if not self._received:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        return self._received.popleft()

    def name(self, name: str) -> None:
        """Keep the oldest one as ``name``, in the place of another one of that name.  Raises QmpError."""
        fd = self.take()
        problem = ""
        if not name or name[0].isdigit():
            problem = "Parameter 'fdname' expects a name not starting with a digit"
        elif len(self._named) >= MAX_NAMED and name not in self._named:
            problem = f"There are {MAX_NAMED} named descriptors already"
        if problem:
            os.close(fd)
            raise QmpError(problem)
        if name in self._named:
            os.close(self._named[name])
        self._named[name] = fd

    def take_named(self, name: str) -> int:
        """The one called ``name``, which the caller owns then.  Raises QmpError."""
        try:
            return self._named.pop(name)
        except KeyError:
            raise QmpError(f"File descriptor named '{name}' not found") from None

    def take_all(self, names: Sequence[str]) -> tuple[int, ...]:
        """Those with these names, as ``take_named``, or none of them.  Raises QmpError."""
        for name in names:
            if name not in self._named:
                raise QmpError(f"File descriptor named '{name}' not found")
        if len(set(names)) < len(names):
            raise QmpError("a file descriptor is named twice")
        return tuple(self._named.pop(name) for name in names)

    def close(self) -> None:
        """Idempotent."""
        for fd in (*self._received, *self._named.values()):
            os.close(fd)
        self._received.clear()
        self._named.clear()


class Member(NamedTuple):
    """A descriptor in a set; ``opaque`` is its owner's word about it."""

    fd: int
    opaque: str | None


class Sets:
    """Numbered sets of descriptors, of all clients together; ``/dev/fdset/N`` names one of set N."""

    def __init__(self) -> None:
        self.sets: dict[int, list[Member]] = {}

    def add(self, fd: int, number: int | None, opaque: str | None) -> int:
        """Put ``fd`` into a set, a new one where ``number`` is None; gives its number.  Raises QmpError."""
        if number is not None and number < 0:
            raise QmpError("Parameter 'fdset-id' expects a non-negative value")
        if sum(map(len, self.sets.values())) >= MAX_IN_SETS:
            raise QmpError(f"There are {MAX_IN_SETS} descriptors in sets already")
        if number is None:
            number = next(free for free in range(len(self.sets) + 1) if free not in self.sets)
        self.sets.setdefault(number, []).append(Member(fd, opaque))
        return number

    def remove(self, number: int, fd: int | None) -> None:
        """Close ``fd``, or all of the set where it is None.  Raises QmpError."""
        members = self.sets.get(number, [])
        gone = [member for member in members if fd is None or member.fd == fd]
        if not gone:
            name = f"fdset-id:{number}" if fd is None else f"fdset-id:{number}, fd:{fd}"
            raise QmpError(f"File descriptor named '{name}' not found")
        for member in gone:
            os.close(member.fd)
            members.remove(member)
        if not members:
            del self.sets[number]

    def close(self) -> None:
        """Idempotent."""
        for number in list(self.sets):
            self.remove(number, None)
