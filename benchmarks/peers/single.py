"""What one boot of one machine shows.  Runs in the emulated host."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from peers.boots import MARK, memory_mib, running, until
from peers.devices import Place, virtiofsd
from peers.turns import BOOT_PATIENCE, IMAGES, MEMORY, command


def root_boot(name: str, boot: list[str]) -> float:
    """Seconds from process start to Python that runs in the guest, from a root that is this host's own."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=IMAGES) as directory, _root() as root:
        place = Place(directory, 0)
        argv = command(name, boot, "virtiofs", place)
        with virtiofsd(place, root), running(argv) as (process, start):
            return until(process, MARK, BOOT_PATIENCE)[0] - start


@contextmanager
def _root() -> Iterator[str]:
    """This host's root without what is mounted below it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        subprocess.run(["mount", "-o", "bind", "/", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def returned(name: str, boot: list[str], tools: str) -> float:
    """MiB of guest RAM that the host has back after the guest used and freed memory (guest.sh, balloon)."""
    argv = command(name, boot, "balloon", Place("", 0), tools)
    with running(argv) as (process, _):
        until(process, b"#filled", BOOT_PATIENCE)
        filled = memory_mib(process.pid, MEMORY)[0]
        until(process, b"#freed", BOOT_PATIENCE)
        return filled - memory_mib(process.pid, MEMORY)[0]
