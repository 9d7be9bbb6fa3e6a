"""What a guest gets to measure its devices with: fio, iperf3 and sockperf on a disk, and modules.

A disk rather than an initramfs, since fio comes with 80 MB of libraries of which it touches little.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from nemu.errors import HostError
from nemu.host import cache, cpio, guest, modules, packages
from nemu.host.emulated import erofs

PROGRAMS = {"fio": "fio", "iperf3": "iperf3", "sockperf": "sockperf"}  # program -> package
MODULES = ("erofs",)  # besides the small guest's
SCRIPT, ROOT_SCRIPT = "guest.sh", "root.sh"
FILES = ("initrd", "tools", "root-initrd")
_HERE = os.path.dirname(os.path.abspath(__file__))
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph")


class Tools(NamedTuple):
    """The guest to boot, and the disk that its command line mounts at /tools.

    With ``root_initrd`` instead of ``initrd`` its root is the virtiofs "bench" (root.sh).
    """

    kernel: str
    initrd: str
    append: str
    disk: str
    root_initrd: str


def ensure() -> Tools:
    """Built on first use.  Raises HostError when that is not possible."""
    small = guest.ensure()
    with cache.Progress("building the benchmarks' guest") as progress:
        trees = {name: packages.tree((package,), progress=progress) for name, package in PROGRAMS.items()}
        sources = [_read(os.path.join(_HERE, name)) for name in (SCRIPT, ROOT_SCRIPT, "tools.py")]
        facts = [*sources, small.initrd.encode(), *map(str.encode, trees.values())]

        def build(directory: str) -> None:
            _write_disk(os.path.join(directory, "tools"), trees)
            _write_initrds(directory, small, progress)

        key = hashlib.sha256(b"\0".join(facts)).hexdigest()[:16]
        place = cache.entry("bench", key, FILES, build, keep=1)
    initrd, disk, root_initrd = (os.path.join(place, name) for name in FILES)
    return Tools(small.kernel, initrd, small.append, disk, root_initrd)


def command(words: str) -> str:
    """The shell command that runs the guest's script with ``words``, for guest.run_option."""
    mount = "modprobe erofs && mkdir /tools && mount -t erofs -o ro /dev/vda /tools"
    return f"{mount} && sh /tools/{SCRIPT} {words}"


def _write_disk(path: str, trees: dict[str, str]) -> None:
    image = erofs.Image()
    image.file(SCRIPT, os.path.join(_HERE, SCRIPT), 0o755)
    for name, tree in trees.items():
        program = f"{tree}/usr/bin/{name}"
        image.file(f"bin/{name}", program)
        for library in _libraries(tree, program):
            image.file(f"lib/{os.path.basename(library)}", os.path.realpath(library))
    with open(path, "wb") as file:
        image.write(file.fileno())


def _libraries(tree: str, program: str) -> list[str]:
    """The dynamic loader and all shared libraries of ``program``, as files of its own ``tree``."""
    loader = f"{tree}/lib64/ld-linux-x86-64.so.2"
    where = ":".join(f"{tree}/{path}" for path in _LIBRARIES)
    done = subprocess.run(
        [loader, "--library-path", where, "--list", program], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HostError(f"{program}: {done.stderr.strip()}")
    found = [words[2] for words in map(str.split, done.stdout.splitlines()) if words[1:2] == ["=>"]]
    return [loader, *(path for path in found if path.startswith(f"{tree}/") and path != loader)]


def _write_initrds(directory: str, small: guest.Guest, progress: Callable[[str], None]) -> None:
    """The small guest's initramfs with all modules behind it, and once more with another init."""
    names = ("linux-image-cloud-amd64", "busybox-static")
    debs = packages.fetch(names, only=("linux-image-", "busybox-static"), progress=progress)
    tree = os.path.join(directory, "tree")
    packages.unpack(debs, tree)
    archive = cpio.Archive()
    modules.add(archive, tree, modules.kernel(tree).release, (*guest.MODULES, *MODULES))
    shutil.rmtree(tree)
    data = _read(small.initrd) + archive.to_bytes()
    root = cpio.Archive()
    root.file("init", _read(os.path.join(_HERE, ROOT_SCRIPT)), 0o755)
    for name, content in (("initrd", data), ("root-initrd", data + root.to_bytes())):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
