"""The program tree that the emulated host runs: nemu itself (and its tests), compiled, as a disk image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import nemu
from nemu.errors import HostError
from nemu.host import cache
from nemu.host.emulated import erofs, template

KEEP = 8  # images of other states of the tree that are kept
MOUNT = "/nemu"
BYTECODE_MAX_AGE = 14 * 24 * 3600  # seconds without use
_SKIP = ("__pycache__",)
_SUFFIX = "cpython-311.pyc"
_MAGIC = b"\xa7\x0d\x0d\x0a"  # of CPython 3.11, which the emulated host runs
_COMPILER = """
import json, py_compile, sys
for source, target, shown in json.load(sys.stdin):
    try:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(source, target, shown, doraise=True, invalidation_mode=mode)
    except (py_compile.PyCompileError, UnicodeError):
        pass  # not for this Python, or broken on purpose: whoever imports it learns so
"""


class _File(NamedTuple):
    """What tells one state of a file from another."""

    inside: str
    path: str
    size: int
    mtime: int


def tree_image(tree: Mapping[str, str] | None) -> int:
    """A descriptor of the image of ``tree`` (path inside -> directory or file here; default: this nemu)."""
    import hashlib

    parts = tree or {"src/nemu": os.path.dirname(os.path.abspath(nemu.__file__))}
    files = [file for inside, directory in sorted(parts.items()) for file in _files(inside, directory)]
    key = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    place = cache.entry("tree", key, ("image",), lambda directory: _build(directory, files), keep=KEEP)
    return os.open(os.path.join(place, "image"), os.O_RDONLY | os.O_CLOEXEC)


def _files(inside: str, directory: str) -> Iterator[_File]:
    if os.path.isfile(directory):
        found = os.stat(directory)
        yield _File(inside, directory, found.st_size, found.st_mtime_ns)
    for place, directories, names in os.walk(directory):
        directories[:] = sorted(
            name for name in directories if name not in _SKIP and not name.startswith(".")
        )
        for name in sorted(names):
            path = os.path.join(place, name)
            found = os.stat(path, follow_symlinks=False)
            to = f"{inside}/{os.path.relpath(path, directory)}"
            yield _File(to, path, found.st_size, found.st_mtime_ns)


def _build(directory: str, files: list[_File]) -> None:
    image = erofs.Image()
    for file in files:
        if os.path.islink(file.path):
            image.symlink(file.inside, os.readlink(file.path))
        else:
            image.file(file.inside, file.path)
    for inside, path in _bytecode([file for file in files if file.inside.endswith(".py")]).items():
        image.file(inside, path)
    with open(os.path.join(directory, "image"), "wb") as target:
        image.write(target.fileno(), template.TREE_DISK_SIZE)


def _bytecode(files: list[_File]) -> dict[str, str]:
    """Byte code of ``files``: path inside -> file in the cache.  Made inside it would take seconds a run."""
    import hashlib

    store = os.path.join(cache.root(), "bytecode")
    os.makedirs(store, exist_ok=True)
    wanted, missing = {}, []
    for file in files:
        with open(file.path, "rb") as source:
            digest = hashlib.sha256(file.inside.encode() + b"\0" + source.read()).hexdigest()[:24]
        target = os.path.join(store, digest)
        package, name = os.path.split(file.inside.removesuffix(".py"))
        wanted[f"{package}/__pycache__/{name}.{_SUFFIX}"] = target
        if os.path.exists(target):
            os.utime(target)
        else:
            missing.append((file.path, target, f"{MOUNT}/{file.inside}"))
    if missing:
        _compile(missing)
        _forget_old(store)
    return {inside: path for inside, path in wanted.items() if os.path.exists(path)}


def _compile(jobs: list[tuple[str, str, str]]) -> None:
    """Compile each (source, target, name in tracebacks) with an interpreter of the right version."""
    import importlib.util
    import json
    import subprocess
    import sys

    environment = dict(os.environ)
    if importlib.util.MAGIC_NUMBER == _MAGIC:
        argv = [sys.executable]
    else:
        from nemu.host import packages

        argv = packages.program("python3.11", "python3.11")
        if len(argv) > 1:  # out of the cache: its library lies beside it
            environment["PYTHONHOME"] = argv[-1].removesuffix("/bin/python3.11")
    done = subprocess.run(
        [*argv, "-I" if len(argv) == 1 else "-s", "-c", _COMPILER],
        env=environment,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise HostError(f"cannot compile nemu for the emulated host: {done.stderr.strip()[-200:]}")


def _forget_old(store: str) -> None:
    import time

    oldest = time.time() - BYTECODE_MAX_AGE
    for name in os.listdir(store):
        path = os.path.join(store, name)
        if os.stat(path).st_mtime < oldest:
            os.unlink(path)
