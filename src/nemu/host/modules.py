"""Kernel modules out of an unpacked kernel package: which ones are needed, and in an initramfs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from nemu.errors import HostError
from nemu.host.cpio import Archive


class Kernel(NamedTuple):
    """The kernel image of an unpacked package and its release, e.g. ``6.1.0-18-cloud-amd64``."""

    image: str
    release: str


def kernel(tree: str) -> Kernel:
    """The one kernel in ``tree``."""
    found = [name for name in os.listdir(os.path.join(tree, "boot")) if name.startswith("vmlinuz-")]
    if len(found) != 1:
        raise HostError(f"the kernel package has {len(found)} kernels instead of one")
    return Kernel(os.path.join(tree, "boot", found[0]), found[0].removeprefix("vmlinuz-"))


def closure(tree: str, release: str, names: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """``names`` and what they depend on, dependencies first: name -> (path of the file, direct dependencies).

    Names are spelt with "_" as the kernel spells them; one that is built in is left out.
    """
    base = os.path.join(tree, "lib/modules", release)
    files = {
        _kernel_name(name): os.path.join(directory, name)
        for directory, _, members in os.walk(base)
        for name in members
        if name.endswith(".ko")
    }
    with open(os.path.join(base, "modules.builtin"), encoding="ascii") as file:
        builtin = {_kernel_name(os.path.basename(line.strip())) for line in file}
    order: dict[str, tuple[str, list[str]]] = {}

    def visit(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise HostError(f"the kernel {release} has no module {name}")
        needed = depends(files[name])
        for other in needed:
            visit(other)
        order[name] = (files[name], needed)

    for name in names:
        visit(_kernel_name(name))
    return order


def depends(path: str) -> list[str]:
    """The direct dependencies of the module file ``path``: ``depends=`` in its .modinfo section."""
    with open(path, "rb") as file:
        data = file.read()
    # .modinfo is a run of NUL-terminated "key=value" strings; no other section has this key.
    match = re.search(rb"\0depends=([^\0]*)\0", data)
    return [_kernel_name(name) for name in match[1].decode().split(",") if name] if match else []


def add(archive: Archive, tree: str, release: str, names: Iterable[str]) -> None:
    """Put ``names`` and their dependencies into ``archive`` with the modules.dep that modprobe reads."""
    order = closure(tree, release, names)
    base = f"lib/modules/{release}"
    for path in ("lib", "lib/modules", base):
        archive.directory(path)
    lines = []
    for name, (path, _) in order.items():
        with open(path, "rb") as file:
            archive.file(f"{base}/{name}.ko", file.read())
        lines.append(f"{name}.ko:" + "".join(f" {other}.ko" for other in _all_before(name, order)))
    archive.file(f"{base}/modules.dep", ("\n".join(lines) + "\n").encode())


def _all_before(name: str, order: dict[str, tuple[str, list[str]]]) -> list[str]:
    """Everything that ``name`` needs, directly or not, as modules.dep(5) wants it: last loaded first."""
    needed: set[str] = set()
    pending = [name]
    while pending:
        for other in order[pending.pop()][1]:
            if other in order and other not in needed:
                needed.add(other)
                pending.append(other)
    return [other for other in reversed(order) if other in needed]


def _kernel_name(file: str) -> str:
    return file.removesuffix(".ko").replace("-", "_")
