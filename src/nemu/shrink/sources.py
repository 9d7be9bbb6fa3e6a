"""Where the tree comes from: a directory, a git checkout, or a source package of the distribution.

What was given is only read.  All work is done on a copy in the cache, named by its content.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

from nemu.errors import ConfigError, HostError
from nemu.host import cache, packages
from nemu.shrink import process, tree


class Source(NamedTuple):
    """``root`` is in the cache and not to be written; ``given`` is what the user named.

    ``original`` is the source before the distribution's changes, with its own history if it has one.
    """

    root: str
    names: list[str]
    digest: str
    given: str
    checkout: str


def obtain(
    given: str, *, refresh: bool = False, progress: Callable[[str], None] = lambda step: None
) -> Source:
    """The source ``given`` as a directory or as the name of a source package."""
    if os.path.isdir(given):
        tree.check(given)
        checkout = os.path.abspath(given) if tree.is_checkout(given) else ""
        progress("reading the source")
        names = tree.tracked(given) if checkout else tree.files(given)
        return _cached(os.path.abspath(given), names, given, checkout)
    if os.sep in given or given.startswith("."):
        tree.check(given)
    return _package(given, refresh, progress)


def _cached(root: str, names: list[str], given: str, checkout: str) -> Source:
    digest = tree.digest(root, names)
    size = sum(os.lstat(os.path.join(root, name)).st_size for name in names)
    tree.require_room(cache.root(), size)

    def build(directory: str) -> None:
        tree.copy(root, names, os.path.join(directory, "tree"))

    place = cache.entry("shrink-source", digest, ("tree",), build, keep=4)
    return Source(os.path.join(place, "tree"), names, digest, given, checkout)


def _package(name: str, refresh: bool, progress: Callable[[str], None]) -> Source:
    if shutil.which("dpkg-source") is None:
        raise HostError("dpkg-source is not there: apt-get install dpkg-dev, or use --install-deps")
    try:
        control = packages.source(name, refresh=refresh, progress=progress)
    except HostError as error:
        if "Unable to find a source package" in str(error):
            raise ConfigError("--source", name, "neither a directory nor a source package") from None
        raise
    key = os.path.basename(os.path.dirname(control))

    def build(directory: str) -> None:
        progress("unpacking the source package")
        unpacked = os.path.join(directory, "unpacked")
        process.output(["dpkg-source", "--no-check", "-x", control, unpacked])
        names = tree.files(unpacked)
        tree.copy(unpacked, names, os.path.join(directory, "tree"))
        shutil.rmtree(unpacked)
        with open(os.path.join(directory, "digest"), "w", encoding="ascii") as file:
            file.write(tree.digest(os.path.join(directory, "tree"), names))

    place = cache.entry("shrink-package", f"{name}-{key}", ("tree", "digest"), build, keep=4)
    root = os.path.join(place, "tree")
    with open(os.path.join(place, "digest"), encoding="ascii") as file:
        digest = file.read()
    version = os.path.basename(control).removesuffix(".dsc")
    return Source(root, tree.files(root), digest, version, "")


def sysroot(
    names: tuple[str, ...], architecture: str, progress: Callable[[str], None] = lambda step: None
) -> str:
    """A directory with the libraries ``names`` of another architecture, for its cross compiler."""
    base = packages.tree(names, architecture=architecture, progress=progress)

    def build(directory: str) -> None:
        copy = os.path.join(directory, "root")
        shutil.copytree(base, copy, symlinks=True, copy_function=os.link)
        for folder, _, members in os.walk(copy):
            for member in members:
                _make_relative(copy, os.path.join(folder, member))

    key = os.path.basename(os.path.dirname(base))
    return os.path.join(cache.entry("sysroots", key, ("root",), build), "root")


def _make_relative(root: str, path: str) -> None:
    """Lead an absolute symbolic link into ``root`` instead of out of it."""
    if not os.path.islink(path):
        return
    target = os.readlink(path)
    if target.startswith("/"):
        inside = os.path.relpath(root + target, os.path.dirname(path))
        os.unlink(path)
        os.symlink(inside, path)
