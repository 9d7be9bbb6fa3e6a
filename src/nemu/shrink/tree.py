"""A source tree: what is in it, and copies of it that may be built in and changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator

from nemu.errors import ConfigError, HostError
from nemu.shrink import process

# Version control, and quilt's copies of patched files, are not source.
NOT_SOURCE = frozenset((".git", ".hg", ".svn", ".pc"))


def files(root: str) -> list[str]:
    """The regular files and symbolic links below ``root``, relative and sorted."""
    return sorted(_walk(root, ""))


def tracked(root: str) -> list[str]:
    """The files of a git checkout that are under version control and there."""
    names = process.output(["git", "-C", root, "ls-files", "-z"]).split("\0")
    return sorted(name for name in names if name and os.path.lexists(os.path.join(root, name)))


def is_checkout(root: str) -> bool:
    """Whether ``root`` is the top of a git checkout."""
    return os.path.exists(os.path.join(root, ".git"))


def digest(root: str, names: Iterable[str]) -> str:
    """A digest of names, modes and contents."""
    total = hashlib.sha256()
    for name in names:
        path = os.path.join(root, name)
        status = os.lstat(path)
        total.update(f"{name}\0{status.st_mode & 0o170111:o}\0".encode("utf-8", "surrogateescape"))
        if stat.S_ISLNK(status.st_mode):
            total.update(os.fsencode(os.readlink(path)))
        else:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:24]


def copy(root: str, names: Iterable[str], target: str) -> None:
    """Copy ``names`` from ``root`` to the directory ``target``, with modes and times."""
    made: set[str] = set()
    for name in names:
        folder = os.path.dirname(name)
        if folder not in made:
            os.makedirs(os.path.join(target, folder), exist_ok=True)
            made.add(folder)
        shutil.copy2(os.path.join(root, name), os.path.join(target, name), follow_symlinks=False)


def remove(root: str, names: Iterable[str]) -> None:
    """Delete ``names`` below ``root``, and every directory that becomes empty."""
    folders = set()
    for name in names:
        os.unlink(os.path.join(root, name))
        folders.add(os.path.dirname(name))
    for start in sorted(folders, key=len, reverse=True):
        folder = start
        while folder and _is_empty(os.path.join(root, folder)):
            os.rmdir(os.path.join(root, folder))
            folder = os.path.dirname(folder)


def _is_empty(folder: str) -> bool:
    return os.path.isdir(folder) and not os.listdir(folder)


def check(root: str) -> None:
    """Raise ConfigError unless ``root`` is a directory that can be read and has files."""
    if not os.path.isdir(root):
        raise ConfigError("--source", root, "no such directory")
    if not os.access(root, os.R_OK | os.X_OK):
        raise ConfigError("--source", root, "cannot be read")
    if next(_walk(root, ""), None) is None:
        raise ConfigError("--source", root, "has no files")


def require_room(folder: str, needed: int) -> None:
    """Raise HostError unless ``needed`` bytes are free where ``folder`` is or will be."""
    place = folder
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < needed:
        gib = 1 << 30
        raise HostError(
            f"no room in {folder}: {needed / gib:.1f} GiB are needed and {free / gib:.1f} GiB are free "
            "(NEMU_CACHE names another place)"
        )


def _walk(root: str, folder: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
    except OSError as error:
        raise HostError(f"{error.filename}: {(error.strerror or '').lower()}") from None
    for entry in entries:
        name = os.path.join(folder, entry.name)
        if entry.is_symlink() or entry.is_file():
            yield name
        elif entry.is_dir() and entry.name not in NOT_SOURCE:
            yield from _walk(root, name)
