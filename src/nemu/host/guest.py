"""The small guest: the distribution's cloud kernel and an initramfs with busybox and the virtio modules.

``ensure()`` is on the start-up path of ``nemu run``: when the guest is in the cache it reads
nothing but its own recipe and looks whether two files are there.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import NamedTuple

from nemu.errors import HostError
from nemu.host import cache

# The order is the order in the archive only; the init script decides what is loaded when.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "pvpanic-mmio",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtiofs",
    "overlay",  # with virtiofs: the root of `nemu run -- COMMAND`
    "button",  # with evdev: the power button
    "evdev",
    "virtio_pmem",  # with nd_pmem: --pmem
    "nd_pmem",
    "virtio_balloon",
    "wdat_wdt",  # --watchdog
    "isofs",  # --cloud-init
    "vmw_vsock_virtio_transport",
    "virtio_scsi",
    "sd_mod",
    "virtio_mmio",  # not for nemu's machine: the same guest then also runs on QEMU's microvm
)
_AMD64_MODULES = frozenset(("pvpanic-mmio",))  # the distribution's arm64 kernel is built without
# loglevel=3 hides one complaint of Linux: that there is no console before its module is loaded.
# The init script shows errors again as soon as the console is there.  The last two keep Linux from
# looking for a PC's PCI ports and UARTs, each read of which would be an exit for nothing.
APPEND = "console=hvc0 quiet loglevel=3 mitigations=off pci=noearly 8250.nr_uarts=0"
_DIRECTORIES = "bin sbin dev proc sys etc etc/acpi etc/acpi/PWRF etc/udhcpc".split()
_INIT = os.path.join(os.path.dirname(__file__), "guest_init.sh")
_POWER_BUTTON = "#!/bin/sh\nexec poweroff -f\n"
_DHCP = """#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound | renew)
    ip addr flush dev $interface
    ip addr add $ip/${mask:-24} dev $interface
    [ -n "$router" ] && ip route add default via ${router%% *}
    for server in $dns; do echo nameserver $server; done >/etc/resolv.conf
    ;;
esac
"""


class Guest(NamedTuple):
    """What to boot: two files in the cache, and the kernel command line that they want."""

    kernel: str
    initrd: str
    append: str


def ensure(architecture: str = "amd64", *, rebuild: bool = False) -> Guest:
    """The small guest, built on first use.  Raises HostError when that is not possible."""
    with open(_INIT, encoding="utf-8") as file:
        init = file.read()
    recipe = "\n".join((init, _POWER_BUTTON, _DHCP, *MODULES))
    key = f"{architecture}-{zlib.crc32(recipe.encode()):08x}"

    def build(directory: str) -> None:
        with cache.Progress("building the small guest") as progress:
            _build(directory, architecture, init, progress, refresh=rebuild)

    place = cache.entry("guest", key, ("vmlinuz", "initrd"), build, keep=4, rebuild=rebuild)
    return Guest(os.path.join(place, "vmlinuz"), os.path.join(place, "initrd"), APPEND)


def run_option(command: str) -> str:
    """The kernel command line word that makes the small guest run the shell command ``command``.

    It prints its output and ``nemu.status N`` on the console and powers the machine off.
    """
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./:"
    return "nemu.run=" + "".join(chr(c) if c in plain else f"%{c:02x}" for c in command.encode())


def _build(
    directory: str, architecture: str, init: str, progress: Callable[[str], None], *, refresh: bool
) -> None:
    import shutil

    from nemu.host import cpio, modules, packages

    kernel_package = f"linux-image-cloud-{architecture}"
    debs = packages.fetch(
        (kernel_package, "busybox-static"),
        architecture=architecture,
        only=("linux-image-", "busybox-static"),
        refresh=refresh,
        progress=progress,
    )
    tree = os.path.join(directory, "tree")
    packages.unpack(debs, tree)
    progress("making the initramfs")
    kernel = modules.kernel(tree)
    archive = cpio.Archive()
    for path in _DIRECTORIES:
        archive.directory(path)
    archive.file("init", init.encode(), 0o755)
    archive.file("etc/acpi/PWRF/00000080", _POWER_BUTTON.encode(), 0o755)
    archive.file("etc/udhcpc/default.script", _DHCP.encode(), 0o755)
    with open(os.path.join(tree, "bin/busybox"), "rb") as file:
        archive.file("bin/busybox", file.read(), 0o755)
    names = [name for name in MODULES if architecture == "amd64" or name not in _AMD64_MODULES]
    modules.add(archive, tree, kernel.release, names)
    with open(os.path.join(directory, "initrd"), "wb") as file:
        file.write(archive.to_bytes())
    os.rename(kernel.image, os.path.join(directory, "vmlinuz"))
    shutil.rmtree(tree)


def summary(guest: Guest) -> str:
    """One line about the built guest for people."""
    try:
        sizes = [os.path.getsize(path) / cache.MIB for path in (guest.kernel, guest.initrd)]
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
    return f"{guest.kernel} ({sizes[0]:.1f} MiB)\n{guest.initrd} ({sizes[1]:.1f} MiB)\n{guest.append}"
