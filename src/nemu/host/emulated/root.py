"""What the emulated host is made of: kernel, initramfs and root image, from distribution packages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from nemu.errors import HostError
from nemu.host import cpio, modules, packages
from nemu.host.emulated import erofs

KERNEL = (("linux-image-cloud-amd64", "busybox-static"), ("linux-image-", "busybox-static"))
PYTHON = "python3.11"
BASE = (PYTHON, "python3-lz4", "python3-zstandard", "passt", "strace", "iproute2", "busybox-static")
MODULES = (
    "virtio_pci virtio_blk virtio_console virtio_net virtio_rng virtio_scsi sd_mod erofs overlay loop "
    "kvm_amd tun vhost_net vhost_vsock vhost_scsi virtiofs"
).split()
AGENT = "usr/lib/nemu-agent"
# Documentation and translations, what nothing here runs, and the test suites of the standard library.
SKIP = (
    "usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/perl5 "
    "usr/share/zoneinfo usr/lib/python3.11/test usr/lib/python3.11/idlelib usr/lib/python3.11/tkinter "
    "usr/lib/python3.11/turtledemo usr/lib/python3.11/ensurepip usr/lib/python3.11/lib2to3"
).split()
_HERE = os.path.dirname(__file__)
_CONFIGURATION = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/hostname": "emulated\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def sources(
    extra: tuple[str, ...], progress: Callable[[str], None]
) -> tuple[list[packages.Package], list[packages.Package]]:
    """(kernel packages, root packages): from the cache, fetched on first use."""
    names, only = KERNEL
    return (
        packages.fetch(names, only=only, progress=progress),
        packages.fetch((*BASE, *extra), progress=progress),
    )


def recipe() -> bytes:
    """All that the images depend on besides the packages."""
    parts = [repr((MODULES, SKIP, sorted(_CONFIGURATION.items()))).encode()]
    for name in ("init.sh", "agent.py", "wire.py", "root.py", "erofs.py"):
        with open(os.path.join(_HERE, name), "rb") as file:
            parts.append(file.read())
    return b"\0".join(parts)


def build_kernel(directory: str, debs: list[packages.Package]) -> None:
    """``vmlinuz`` and ``initrd`` into ``directory``."""
    import shutil

    tree = os.path.join(directory, "kernel-tree")
    packages.unpack(debs, tree)
    kernel = modules.kernel(tree)
    archive = cpio.Archive()
    for path in ("bin", "dev", "proc", "sys", "lower", "upper", "new"):
        archive.directory(path)
    with open(os.path.join(_HERE, "init.sh"), "rb") as file:
        archive.file("init", file.read(), 0o755)
    with open(os.path.join(tree, "bin/busybox"), "rb") as file:
        archive.file("bin/busybox", file.read(), 0o755)
    modules.add(archive, tree, kernel.release, MODULES)
    with open(os.path.join(directory, "initrd"), "wb") as file:
        file.write(archive.to_bytes())
    os.rename(kernel.image, os.path.join(directory, "vmlinuz"))
    shutil.rmtree(tree)


def build_root(directory: str, debs: list[packages.Package], progress: Callable[[str], None]) -> None:
    """``root.erofs`` into ``directory``."""
    import shutil

    tree = os.path.join(directory, "root-tree")
    progress(f"unpacking {len(debs)} packages")
    packages.unpack(debs, tree)
    progress("compiling the Python library")
    _compile(tree)
    progress("writing the root image")
    image = erofs.Image()
    image.tree("", tree, tuple(SKIP))
    for path in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "nemu", "var/tmp", "etc"):
        image.directory(path)
    for path, text in _CONFIGURATION.items():
        image.bytes(path, text.encode())
    _add_agent(image)
    _add_applets(image, os.path.join(tree, "bin/busybox"))
    with open(os.path.join(directory, "root.erofs"), "wb") as file:
        image.write(file.fileno())
    shutil.rmtree(tree)


def _compile(tree: str) -> None:
    """Byte code for the standard library, made by the very interpreter that will load it."""
    libraries = f"{tree}/lib/x86_64-linux-gnu:{tree}/usr/lib/x86_64-linux-gnu"
    done = subprocess.run(
        [
            *(f"{tree}/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, f"{tree}/usr/bin/{PYTHON}"),
            *("-I", "-S", "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash"),
            *("-s", tree, "-p", "/", "-x", r"/(test|tests|idlelib|lib2to3|tkinter|turtledemo)/"),
            *(f"{tree}/usr/lib/{PYTHON}", f"{tree}/usr/lib/python3"),
        ],
        env={"PATH": "/usr/bin:/bin", "PYTHONHOME": f"{tree}/usr"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not os.path.exists(f"{tree}/usr/lib/{PYTHON}/__pycache__/os.cpython-311.pyc"):
        raise HostError(
            f"cannot compile the Python library of the emulated host: {done.stderr.strip()[-200:]}"
        )


def _add_agent(image: erofs.Image) -> None:
    for package in ("nemu", "nemu/host", "nemu/host/emulated"):
        image.bytes(f"{AGENT}/{package}/__init__.py", b"")
    for name in ("agent.py", "wire.py"):
        image.file(f"{AGENT}/nemu/host/emulated/{name}", os.path.join(_HERE, name))


def _add_applets(image: erofs.Image, busybox: str) -> None:
    """A link for each busybox applet that no package of its own brings."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if not any(f"{place}/{applet}" in image for place in ("bin", "sbin", "usr/bin", "usr/sbin")):
            image.symlink(f"bin/{applet}", "busybox")
