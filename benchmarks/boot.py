"""How our machine boots beside QEMU microvm and q35: time, exits, memory, an idle guest.

Everything is measured in one run, in alternating order, with the same kernel, initrd and command
line.  Whole boots run in the emulated host, whose KVM is real; the time from process start to the first
KVM_RUN is measured on this machine, where a KVM that only interprets is good enough.

  init            seconds from process start to the first line of the guest's init, all drivers loaded
  exits           returns of KVM_RUN to the VMM until then
  pss             MiB of the idle VMM, guest RAM aside
  idle            system calls of the VMM while its guest idles (without the entropy device, which
                  Linux reads every few seconds)
  first_kvm_run   ms from process start to the first KVM_RUN, here

The kernel is the distribution's vmlinuz.  Ours unpacks it before the first KVM_RUN, QEMU leaves that to the
guest; so first_kvm_run_vmlinux has the same kernel unpacked beforehand, for every machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from nemu.errors import HostError, NemuError
from nemu.host import guest
from nemu.host.emulated import CallError, Host
from peers import boots, figures
from peers.machines import ABOUT, MACHINES, OURS

HERE = os.path.dirname(os.path.abspath(__file__))
INSIDE = {name: f"/run/guest/{name}" for name in ("vmlinuz", "initrd")}
FIGURES = {
    "init": "start to init, s",
    "exits": "exits until then",
    "pss": "memory of the VMM, MiB",
    "guest": "uptime at init, s",
    "start": "start to KVM_RUN there, s",
    "idle": "system calls, idle guest",
    "first_kvm_run": "start to KVM_RUN here, ms",
    "first_kvm_run_vmlinux": "the same, vmlinux, ms",
}


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="boots of each (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write every figure and the ratios (ours / theirs)")
    parser.add_argument(
        "--idle", type=float, default=60.0, metavar="SECONDS", help="watch an idle guest (default: 60)"
    )
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1 on")
    return int(text)


def unpack(kernel: str, target: str) -> None:
    """The vmlinux in a bzImage."""
    from nemu.boot import bzimage, payload
    from nemu.boot.image import ImageFile

    with ImageFile("--kernel", kernel) as file:
        image = bzimage.parse(file, file.peek())
        stream = payload.unpack(file, image.payload_offset, image.payload_length)
        if stream is None:
            raise HostError(f"{kernel}: cannot be unpacked here")
        size = int.from_bytes(file.read(image.payload_offset + image.payload_length - 4, 4), "little")
        unpacked = bytearray(size)
        stream.read_at(0, memoryview(unpacked))
    with open(target, "wb") as out:
        out.write(unpacked)


class Run:
    """The figures of all rounds as they come in."""

    def __init__(self, small: guest.Guest, vmlinux: str) -> None:
        self.samples: figures.Samples = {}
        self.registers: dict[str, int] = {}
        self.failures: dict[str, int] = {}  # boots of a peer that did not come up
        self._append = f"{small.append} {guest.run_option(boots.COMMAND)}"
        self._append_idle = f"{small.append} {guest.run_option(boots.IDLE_COMMAND)}"
        self._here = {"vmlinuz": small.kernel, "vmlinux": vmlinux, "initrd": small.initrd}

    def add(self, figure: str, name: str, value: float) -> None:
        self.samples.setdefault(figure, {machine: [] for machine in MACHINES})[name].append(value)

    def _guest(self, place: dict[str, str], kernel: str, *, idle: bool = False) -> list[str]:
        return [place[kernel], place["initrd"], self._append_idle if idle else self._append]

    def boots(self, rounds: int, idle: float) -> None:
        """Whole boots in the emulated host, the first round of which only warms it up."""
        source = os.path.join(HERE, os.pardir, "src/nemu")
        tree = {"src/nemu": os.path.normpath(source), "peers": os.path.join(HERE, "peers")}
        files = {path: self._here[name] for name, path in INSIDE.items()}
        with Host(tree=tree, files=files, packages=("qemu-system-x86",)) as host:
            for number in range(rounds + 1):
                for name in _progress("boot", number, rounds):
                    figure = self._boot(host, name, 0)
                    if number and figure:
                        self._add_boot(name, figure)
            for name in _progress("idle", 1, 1) if idle else ():
                figure = self._boot(host, name, idle)
                if figure:
                    self.add("idle", name, figure["idle_calls"])

    def _boot(self, host: Host, name: str, idle: float) -> dict[str, Any] | None:
        """The figures; None when a guest of QEMU's has not come up, which is counted."""
        arguments = {"name": name, "guest": self._guest(INSIDE, "vmlinuz", idle=idle > 0), "idle": idle}
        try:
            figure: dict[str, Any] = host.call("peers.boots:boot", arguments, timeout=300 + idle)
        except CallError:
            if name == OURS:
                raise
            self.failures[name] = self.failures.get(name, 0) + 1
            return None
        return figure

    def _add_boot(self, name: str, figure: dict[str, Any]) -> None:
        self.add("init", name, figure["init_s"])
        self.add("exits", name, sum(figure["exits"].values()))
        self.add("pss", name, figure["pss_mib"])
        self.add("guest", name, figure["uptime_s"])
        self.add("start", name, figure["first_kvm_run_s"])
        if name == OURS:
            self.registers = figure["report"]["exits"]["by_register"]

    def first_runs(self, rounds: int) -> None:
        for number in range(rounds + 1):
            for figure, kernel in (("first_kvm_run", "vmlinuz"), ("first_kvm_run_vmlinux", "vmlinux")):
                for name in _progress(f"start of a {kernel}", number, rounds):
                    seconds = boots.first_run(name, self._guest(self._here, kernel))
                    if number:
                        self.add(figure, name, seconds * 1000)


def _progress(what: str, number: int, rounds: int) -> Iterable[str]:
    for name in MACHINES:
        if sys.stderr.isatty():
            print(f"\r\033[K{what}: {number or 'warm-up'} of {rounds}, {name}", end="", file=sys.stderr)
        yield name
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def report(run: Run, rounds: int, path: str | None) -> None:
    print(figures.table(run.samples, FIGURES, list(MACHINES)))
    print(f"median (least to most) of {rounds} rounds")
    for name, text in ABOUT.items():
        failed = run.failures.get(name)
        print(f"{name}: {text}" + (f"; {failed} boots did not come up and are left out" if failed else ""))
    if path:
        document = figures.to_json(
            run.samples,
            rounds=rounds,
            machines=ABOUT,
            exits_by_register=run.registers,
            did_not_come_up=run.failures,
            host={"cpus": os.cpu_count(), "kernel": platform.release()},
        )
        figures.write(path, document)


def main(argv: Sequence[str]) -> int:
    arguments = options(argv)
    try:
        small = guest.ensure()
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            vmlinux = os.path.join(directory, "vmlinux")
            unpack(small.kernel, vmlinux)
            run = Run(small, vmlinux)
            run.first_runs(arguments.rounds * 2)  # short, and noisier than a whole boot
            run.boots(arguments.rounds, arguments.idle)
            report(run, arguments.rounds, arguments.json)
    except NemuError as error:
        print(f"boot.py: {error}", file=sys.stderr)
        return error.status
    except CallError as error:
        print(f"boot.py: {str(error).splitlines()[-1]} (inside the emulated host)", file=sys.stderr)
        return HostError.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
