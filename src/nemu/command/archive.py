"""What goes into the guest's initramfs for one command: the job, and modules of a kernel of the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemu.boot.image import ImageFile
from nemu.command.prepare import ROOT_TAG
from nemu.errors import ConfigError
from nemu.host.cpio import Archive

if TYPE_CHECKING:
    from nemu.config import MachineConfig

# What the init needs of a kernel, built in or as modules, and the drivers of what else the machine has.
_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "pvpanic_mmio")
_DRIVERS = {"disks": "virtio_blk", "nets": "virtio_net", "rng": "virtio_rng"}
_INIT = os.path.join(os.path.dirname(__file__), "init.sh")
_KERNEL_MOUNTS = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
tmpfs /upper tmpfs mode=755 0 0
"""
_DEVICE_MOUNTS = """\
devpts /dev/pts devpts mode=620,ptmxmode=666 0 0
tmpfs /dev/shm tmpfs mode=1777 0 0
"""
_MOVES = """\
/dev /new/dev none move 0 0
/sys /new/sys none move 0 0
/proc /new/proc none move 0 0
"""
# Copied over the mounted /dev and /upper: what udev makes elsewhere, and what a root may lack.
_LINKS = {
    "fd": "/proc/self/fd",
    **{name: f"/proc/self/fd/{n}" for n, name in enumerate(("stdin", "stdout", "stderr"))},
}
_PLACES = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o1777}
_VERSION = 0x20E  # "The Real-Mode Kernel Header", kernel_version
_RELEASE = re.compile(rb"Linux version (\S+) \(")


def archive(config: MachineConfig, streams: Sequence[str]) -> bytes:
    """The archive for the command of ``config``, whose ``streams`` are not the terminal.  ConfigError."""
    packed = Archive()
    with open(_INIT, "rb") as file:
        packed.file("command", file.read(), 0o755)
    packed.file("job", _job(config, streams), 0o600)
    packed.directory("etc")
    packed.file("etc/fstab", _KERNEL_MOUNTS.encode())
    packed.file("etc/root", _root_mounts(config).encode())
    for place in ("new", "lower", "upper"):
        packed.directory(place)
    if not config.rw:
        packed.file("lower/unmounted", b"")
    for stream in streams:
        packed.fifo(stream)
    packed.directory("dev")
    packed.character_device("dev/null", 1, 3)  # for the shell, once the kernel's /dev has moved into the root
    _add_skeleton(packed)
    release = _release(config.kernel)
    folder = os.path.join(config.root, "lib/modules", release)
    if release and os.path.isdir(folder):
        _add_modules(packed, release, folder, _modules(config))
    return packed.to_bytes()


def _modules(config: MachineConfig) -> list[str]:
    return [*_MODULES, *(driver for field, driver in _DRIVERS.items() if getattr(config, field))]


def _root_mounts(config: MachineConfig) -> str:
    if config.rw:
        root = f"{ROOT_TAG} /new virtiofs rw 0 0\n"
    else:
        layers = "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work"
        root = f"{ROOT_TAG} /lower virtiofs ro 0 0\noverlay /new overlay {layers} 0 0\n"
    # Sockets there lead nowhere; but the user may be there.
    run = "" if f"{config.directory}/".startswith("/run/") else "tmpfs /new/run tmpfs mode=755 0 0\n"
    return f"{_DEVICE_MOUNTS}{root}{run}{_MOVES}"


def _add_skeleton(packed: Archive) -> None:
    for place in ("", "/dev", "/dev/pts", "/dev/shm", "/upper", "/upper/data", "/upper/work"):
        packed.directory(f"skeleton{place}")
    for name, target in _LINKS.items():
        packed.symlink(f"skeleton/dev/{name}", target)
    for name, mode in _PLACES.items():
        packed.directory(f"skeleton/upper/data/{name}", mode)


def _job(config: MachineConfig, streams: Sequence[str]) -> bytes:
    """A shell script that sets what the init wants to know.

    Any byte but NUL may be in a word: what the user typed and the names of files are bytes, not characters.
    """
    lines = [
        f"rw={'1' if config.rw else ''}",
        f"modules='{' '.join(_modules(config))}'",
        f"network={'1' if config.nets else ''}",
        f"streams='{' '.join(streams)}'",
        f"directory={_quoted(config.directory)}",
        f"set -- {' '.join(map(_quoted, config.env))} {_INSIDE} {' '.join(map(_quoted, config.command))}",
    ]
    return os.fsencode("\n".join(lines) + "\n")


# Behind the environment: from the initramfs into the new root, to the right directory there.
_INSIDE = '/bin/busybox nsenter -r. -w".$directory" --'


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _release(kernel: str) -> str:
    """The release of a bzImage or vmlinux, such as ``6.1.0-18-amd64``; "" when it does not tell."""
    with ImageFile("--kernel", kernel) as file:
        head = file.peek()
        if head[0x202:0x206] == b"HdrS":
            place = int.from_bytes(head[_VERSION : _VERSION + 2], "little") + 0x200
            words = head[place : place + 256].partition(b"\0")[0].split()
            return words[0].decode(errors="replace") if words else ""
        return _release_of_vmlinux(file)


def _release_of_vmlinux(file: ImageFile) -> str:
    import mmap

    with open(file.path, "rb") as image, mmap.mmap(image.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _RELEASE.search(data)
        return found[1].decode(errors="replace") if found else ""


def _add_modules(packed: Archive, release: str, folder: str, names: list[str]) -> None:
    """Those of ``names`` that are modules in ``folder``, with what they need (modules.dep(5))."""
    known = _dependencies(folder)
    files = [path for name in names for path in known.get(name, ())]
    for place in ("lib", "lib/modules", f"lib/modules/{release}"):
        packed.directory(place)
    for path in dict.fromkeys(files):
        packed.file(f"lib/modules/{release}/{_stem(path)}.ko", _unpacked(os.path.join(folder, path)))
    rows = (
        f"{_stem(first)}.ko:" + "".join(f" {_stem(path)}.ko" for path in needed)
        for name in dict.fromkeys(_stem(path) for path in files)
        for first, *needed in (known[name],)
    )
    packed.file(f"lib/modules/{release}/modules.dep", ("\n".join(rows) + "\n").encode())


def _dependencies(folder: str) -> dict[str, list[str]]:
    """Name -> the path of a module and those of what it needs, last loaded first."""
    found = {}
    try:
        with open(os.path.join(folder, "modules.dep"), encoding="utf-8", errors="replace") as file:
            for line in file:
                path, _, needed = line.partition(":")
                found[_stem(path)] = [path, *needed.split()]
    except OSError as error:
        raise ConfigError(
            "--kernel", folder, f"its modules cannot be read: {error.strerror}; try depmod"
        ) from None
    return found


def _stem(path: str) -> str:
    """The module's name as the kernel spells it."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _unpacked(path: str) -> bytes:
    """A module as the kernel loads it, whatever the distribution packed it with."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(data)
    if path.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    if path.endswith(".zst"):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data
