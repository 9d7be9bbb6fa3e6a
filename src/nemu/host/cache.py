"""The cache of what nemu builds from distribution packages: ``~/.cache/nemu``.

An entry is a directory that appears whole or not at all: it is built beside its place, by one
process at a time, and renamed.  Everything may be deleted at any time; it is built again.
``NEMU_CACHE`` names another place, ``XDG_CACHE_HOME`` is honoured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from nemu.errors import HostError


def root() -> str:
    """The absolute path of the cache (it need not exist)."""
    explicit = os.environ.get("NEMU_CACHE")
    if explicit:
        return os.path.abspath(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.abspath(os.path.join(base, "nemu"))


def entry(
    kind: str,
    key: str,
    files: tuple[str, ...],
    build: Callable[[str], None],
    *,
    keep: int = 0,
    rebuild: bool = False,
) -> str:
    """The directory ``<root>/<kind>/<key>`` that holds ``files``; ``build(directory)`` makes it when missing.

    With ``keep``, only that many entries of this kind survive a build, the latest used ones.
    Raises HostError when the cache cannot be written, and whatever ``build`` raises.
    """
    parent = os.path.join(root(), kind)
    place = os.path.join(parent, key)
    if not rebuild and complete(place, files):
        if keep:
            _touch(place)
        return place
    try:
        os.makedirs(parent, exist_ok=True)
        os.makedirs(os.path.join(root(), "locks"), exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot write the cache {root()} ({error.strerror}): set NEMU_CACHE to a directory"
        ) from error
    with locked(f"{kind}/{key}"):
        if rebuild or not complete(place, files):
            _build(parent, place, build)
            _prune(parent, keep)
    return place


def complete(place: str, files: tuple[str, ...]) -> bool:
    """Whether ``place`` holds every one of ``files``."""
    return all(os.path.exists(os.path.join(place, name)) for name in files)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache; waits for another process that holds it."""
    import fcntl

    path = os.path.join(root(), "locks", name.replace("/", "-"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch(parent: str) -> Iterator[str]:
    """A new directory in ``parent`` that is gone afterwards; leftovers of dead processes go too.

    Its owner holds a lock on it, so that nobody mistakes it for a leftover.
    """
    import fcntl
    import shutil
    import tempfile

    _sweep(parent)
    place = tempfile.mkdtemp(prefix=".tmp-", dir=parent)
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def _sweep(parent: str) -> None:
    import fcntl
    import shutil
    import time

    for name in os.listdir(parent):
        place = os.path.join(parent, name)
        if not name.startswith(".tmp-"):
            continue
        try:
            # A young one may lie between its mkdir and its lock.
            if time.time() - os.stat(place).st_mtime < 5:
                continue
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _build(parent: str, place: str, build: Callable[[str], None]) -> None:
    with scratch(parent) as temporary:
        fresh = os.path.join(temporary, "new")
        os.mkdir(fresh)
        build(fresh)
        # A half-deleted entry is moved away first: rename() replaces an empty directory only.
        if os.path.lexists(place):
            os.rename(place, os.path.join(temporary, "old"))
        os.rename(fresh, place)


def _touch(place: str) -> None:
    try:
        os.utime(place)
    except OSError:
        pass  # a cache that another user owns, or an entry just deleted


def _prune(parent: str, keep: int) -> None:
    if not keep:
        return
    import shutil

    def last_use(name: str) -> float:
        try:
            return os.stat(os.path.join(parent, name)).st_mtime
        except FileNotFoundError:
            return 0.0

    names = [name for name in os.listdir(parent) if not name.startswith(".")]
    for name in sorted(names, key=last_use, reverse=True)[keep:]:
        # Processes that use it have its files open already.
        shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


MIB = 1 << 20


class Progress:
    """One line on stderr about a long first build; rewritten in place on a terminal.

    ``with Progress("building the small guest") as step: step("fetching packages")`` shows nothing
    before the first step.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.terminal = sys.stderr.isatty()
        self.start = 0.0

    def __enter__(self) -> Callable[[str], None]:
        return self.step

    def step(self, text: str) -> None:
        """Show what is being done now; a log, unlike a terminal, gets one line for all."""
        import time

        first = not self.start
        self.start = self.start or time.monotonic()
        if self.terminal:
            self._show(f"\r\x1b[Knemu: {self.what} (first use): {text} ...")
        elif first:
            self._show(f"nemu: {self.what} (first use)\n")

    @staticmethod
    def _show(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import time

        if self.terminal and self.start:
            took = time.monotonic() - self.start
            done = f"nemu: {self.what}: done in {took:.0f} s\n" if error is None else ""
            self._show(f"\r\x1b[K{done}")
