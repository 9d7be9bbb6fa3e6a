"""Our devices beside QEMU's: disks, persistent memory, a shared directory, networks, returned memory.

Everything runs in one emulated host, whose KVM is real, with the same kernel and tools in the guests
(fio, iperf3, sockperf) and the same programs beside the VMMs (qemu-storage-daemon, virtiofsd).  The
guests that are compared are up together and measure in turn, so that a busy machine is as busy for
each of them.  Images lie on a tmpfs.

  blk_*               virtio-blk of the VMM itself: ours in its loop and threads; QEMU's in its main loop with
                      threads, and in an I/O thread with io_uring
  vhost_user_blk_*    a disk of qemu-storage-daemon
  pmem_*              virtio-pmem, the block device
  virtiofs_*          a file on virtiofsd; virtiofs_boot is process start to Python from a root on it
  net_*, vhost_net_*  TCP over a tap by the VMM and by the host's kernel
  balloon_returned    of 192 MiB that were used in the guest, by free page reporting

A ratio is ours / theirs, or theirs / ours of times: higher is better for us.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nemu
from nemu.errors import HostError, NemuError
from nemu.host import guest
from nemu.host.emulated import CallError, Host
from peers import figures, tools
from peers.devices import DEVICES, QEMU, QEMU_IOTHREAD
from peers.machines import OURS

HERE = os.path.dirname(os.path.abspath(__file__))
KERNEL, INITRD, ROOT_INITRD, TOOLS = (f"/run/guest/{name}" for name in ("vmlinuz", "initrd", "root", "tools"))
PACKAGES = ("qemu-system-x86", "qemu-system-common", "iperf3", "sockperf")
MEMORY = 3072  # MiB of the emulated host: three guests and the images of their devices
BOOT, BALLOON = "virtiofs_boot", "balloon"
TRANSFERS = [name for name in DEVICES if name != BALLOON]
FIGURES = {BOOT: BOOT, BALLOON: f"{BALLOON}_returned"}  # by what is measured with boots of its own
TIMES = (BOOT,)
ABOUT = {
    OURS: "virtio-blk and net in one thread and four workers, all else outside",
    QEMU: "QEMU -M q35; blk: aio=threads, no I/O thread; net: vhost=off",
    QEMU_IOTHREAD: "the same; blk: aio=io_uring, an I/O thread",
}


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=_count, default=3, metavar="N", help="of each figure (default: 3)")
    parser.add_argument("--seconds", type=_count, default=1, metavar="N", help="a transfer (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write every figure, the ratios and the exits")
    names = [*TRANSFERS, BOOT, BALLOON]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"repeat for more: {', '.join(names)}"
    )
    found = parser.parse_args(argv)
    found.only = found.only or names
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1 on")
    return int(text)


class Run:
    """The figures of all rounds as they come in."""

    def __init__(self, guests: tools.Tools, only: Sequence[str]) -> None:
        self.samples: figures.Samples = {}
        self.exits: dict[str, dict[str, int]] = {}  # by machine and device: while data moved
        self.errors: dict[str, str] = {}  # what could not be measured, and why
        self.failures: dict[str, int] = {}  # boots that did not come up and were repeated
        self._guests = guests
        self._only = only

    def add(self, figure: str, name: str, values: Sequence[float]) -> None:
        self.samples.setdefault(figure, {}).setdefault(name, []).extend(values)

    def run(self, rounds: int, seconds: int) -> None:
        tree = {"src/nemu": os.path.dirname(nemu.__file__), "peers": os.path.join(HERE, "peers")}
        built = self._guests
        files = {
            KERNEL: built.kernel,
            INITRD: built.initrd,
            ROOT_INITRD: built.root_initrd,
            TOOLS: built.disk,
        }
        with Host(tree=tree, files=files, packages=PACKAGES, memory=MEMORY) as host:
            for device in (name for name in TRANSFERS if name in self._only):
                _progress(device)
                with self._tried(device):
                    self._transfers(host, device, rounds, seconds)
            for what in (name for name in FIGURES if name in self._only):
                with self._tried(what):
                    for number in range(rounds):
                        for name in (OURS, QEMU):
                            _progress(f"{what} {number + 1}, {name}")
                            self._single(host, what, name)

    @contextmanager
    def _tried(self, what: str) -> Iterator[None]:
        """What fails is named, and the rest is measured all the same."""
        try:
            yield
        except CallError as error:
            self.errors[what] = str(error).splitlines()[-1]

    def _transfers(self, host: Host, device: str, rounds: int, seconds: int) -> None:
        machines = [name for name in ABOUT if name == OURS or name in DEVICES[device].theirs]
        words = guest.run_option(tools.command(f"{seconds} {rounds} {device}"))
        arguments = {
            "machines": machines,
            "device": device,
            "boot": self._boot(INITRD, words),
            "tools": TOOLS,
        }
        found = host.call("peers.turns:measure", arguments, timeout=3600)
        for name, one in found.items():
            for figure, values in one["figures"].items():
                self.add(f"{device}_{figure}", name, values)
            self.exits.setdefault(device, {})[name] = one["exits"]
            self.failures[name] = self.failures.get(name, 0) + one["failed"]

    def _single(self, host: Host, what: str, name: str) -> None:
        arguments: dict[str, object] = {"name": name, "boot": self._boot(ROOT_INITRD)}
        call = "root_boot"
        if what == BALLOON:
            words = guest.run_option(tools.command(f"1 1 {BALLOON}"))
            arguments |= {"boot": self._boot(INITRD, words), "tools": TOOLS}
            call = "returned"
        self.add(FIGURES[what], name, [host.call(f"peers.single:{call}", arguments, timeout=600)])

    def _boot(self, initrd: str, *words: str) -> list[str]:
        return [KERNEL, initrd, " ".join((self._guests.append, *words))]


def _progress(what: str) -> None:
    """On one line of a terminal; a log gets a line for each."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def report(run: Run, rounds: int, path: str | None) -> None:
    _progress("")
    print(figures.table(run.samples, {name: name for name in run.samples}, list(ABOUT)))
    print(f"median (least to most) of {rounds} rounds; 4k: operations a second, 1m: MiB a second, send and")
    print(f"receive: Mbit a second, {BOOT}: seconds, {BALLOON}_returned: MiB")
    for device, exits in run.exits.items():
        print(f"exits while {device} moved data:", ", ".join(f"{name} {n}" for name, n in exits.items()))
    for name, text in ABOUT.items():
        print(f"{name}: {text}")
    if path:
        document = figures.to_json(
            run.samples,
            inverse=TIMES,
            rounds=rounds,
            machines=ABOUT,
            exits=run.exits,
            did_not_come_up=run.failures,
            errors=run.errors,
            host={"cpus": os.cpu_count(), "kernel": platform.release()},
        )
        figures.write(path, document)


def main(argv: Sequence[str]) -> int:
    arguments = options(argv)
    try:
        run = Run(tools.ensure(), arguments.only)
        run.run(arguments.rounds, arguments.seconds)
        report(run, arguments.rounds, arguments.json)
        for what, why in run.errors.items():
            print(f"devices.py: {what}: {why} (inside the emulated host)", file=sys.stderr)
        return HostError.status if run.errors else 0
    except NemuError as error:
        print(f"devices.py: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
