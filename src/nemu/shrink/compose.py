"""From an outcome to a report: counts, sizes, the distribution's own program, and the history of fixes."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, replace

from nemu.host import packages
from nemu.shrink import boot, count, history, process, qemu, tree
from nemu.shrink.kinds import Offer
from nemu.shrink.profile import Build
from nemu.shrink.record import Record
from nemu.shrink.report import Report, Side
from nemu.shrink.run import Outcome, undump


def report(outcome: Outcome, boots: list[boot.Booted]) -> Report:
    """The figures of ``outcome``."""
    run = outcome.run
    pruned = os.path.join(outcome.proof, "source")
    result = undump(os.path.join(outcome.pruned, "result.json"))
    proof = undump(os.path.join(outcome.proof, "proof.json"))
    left = tree.files(pruned)
    empty = {name for name in result["placeholders"] if os.path.getsize(os.path.join(pruned, name)) == 0}
    made = Report(run.profile.name, run.profile.level, outcome.source.given, f"cloc {count.version()}")
    made.files_before, made.files_after = len(outcome.source.names), len(left)
    made.lines_before = run.lines(outcome.source.root)
    made.lines_after = run.lines(pruned)
    made.lines_files_only = sum(run.lines(os.path.join(outcome.pruned, "source")).values())
    made.placeholders = sorted(empty)
    made.edited = result["edited"]
    made.functions = [(file, name) for file, name in proof["removed"]]
    made.repairs = [*result["repairs"], *proof["repairs"]]
    made.boots = [asdict(one) for one in boots if not one.distribution]
    made.surface = history.measure(
        outcome.source.root, outcome.source.checkout, outcome.source.names, set(left) - empty
    )
    for build in run.profile.builds:
        made.after[build.name] = _after(
            Record.load(os.path.join(outcome.proof, f"{build.name}.json")), boots, build
        )
        if build.baseline:
            made.before[build.name] = replace(_distribution(build), syscalls=_calls(boots, build, True))
            made.baseline = "the whole source, and the distribution's own program"
    made.seconds = dict(run.live.seconds)
    return made


def _after(record: Record, boots: list[boot.Booted], build: Build) -> Side:
    programs = list(record.programs.values())
    return Side(
        size=sum(int(str(one["size"])) for one in programs),
        text=sum(int(str(one["text"])) for one in programs),
        libraries=len({name for one in programs for name in _names(one["libraries"])}),
        machines=len(record.machines),
        devices=len(record.devices),
        cpus=len(record.cpus),
        syscalls=_calls(boots, build, False),
        seconds=record.seconds,
    )


def _calls(boots: list[boot.Booted], build: Build, distribution: bool) -> list[str]:
    """The system calls in all boots of one program."""
    mine = [
        one for one in boots if one.name.startswith(f"{build.name} ") and one.distribution == distribution
    ]
    return sorted({name for one in mine for name in one.syscalls})


def _names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def _distribution(build: Build) -> Side:
    """The same figures of the program in the distribution's package."""
    name = f"qemu-system-{build.target.partition('-')[0]}"
    base = packages.tree((build.baseline,))
    path = os.path.join(base, "usr/bin", name)
    text = process.output(["size", path]).splitlines()[1].split()[0]
    libraries = re.findall(r"\(NEEDED\)", process.output(["readelf", "-dW", path]))
    offer = _ask(base, path)
    return Side(
        size=os.path.getsize(path),
        text=int(text),
        libraries=len(libraries),
        machines=len(offer.machines),
        devices=len(offer.devices),
        cpus=len(offer.cpus),
    )


def _ask(base: str, path: str) -> Offer:
    """What the program offers; it runs with its own packages' libraries and modules."""
    library = ":".join(f"{base}/{folder}" for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    argv = [f"{base}/lib64/ld-linux-x86-64.so.2", "--library-path", library, path]
    environment = {"QEMU_MODULE_DIR": f"{base}/usr/lib/x86_64-linux-gnu/qemu"}
    return qemu.offered(argv, environment)
