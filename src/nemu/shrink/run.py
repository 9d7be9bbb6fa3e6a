"""One whole run: source, traces, plan, pruning, proof, boots, report, publication.

Each stage is an entry of the cache that is named by all it depends on, so that a run that was interrupted
goes on where it ended, and a second run only reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from nemu.errors import ConfigError, HostError
from nemu.host import cache
from nemu.shrink import boot, command, count, deps, plan, process, prove, prune, publish, qemu, sources, tree
from nemu.shrink.kinds import Kind
from nemu.shrink.live import Live
from nemu.shrink.profile import Build, Profile
from nemu.shrink.record import Builder, Record
from nemu.shrink.sources import Source

# Changes whenever a stage gives something else for the same input.
FORMAT = "1"
_KEEP = 6  # entries of each stage
_ROOM = 3 << 30  # bytes a build of QEMU may take
_UNKNOWN_OPTION = re.compile(r"unknown option:? '?(--[\w-]+)")
KINDS: dict[str, Callable[[Profile], Kind]] = {"qemu": qemu.Qemu, "command": command.Command}


@dataclass(frozen=True)
class Options:
    """How a run is done."""

    out: str
    source: str = ""
    git: str = ""
    functions: bool = False
    boot: bool = True
    install: bool = False
    refresh: bool = False
    force: bool = False
    jobs: int = 2


class Run:
    """The stages of one run.  Call ``all``."""

    def __init__(self, profile: Profile, options: Options) -> None:
        self.profile = profile
        self.options = options
        self.kind = KINDS[profile.kind](profile)
        self.live = Live()
        self.log = os.path.join(
            cache.root(), "shrink-logs", f"{profile.name}{profile.level and '-'}{profile.level}.log"
        )

    def all(self) -> Outcome:
        """Do everything up to what is published.  Raises ConfigError and HostError."""
        try:
            return self._all()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise HostError(f"no room on the disk of {error.filename or cache.root()}") from None
            raise

    def _all(self) -> Outcome:
        publish.check(self.options.out, self.options.force)
        os.makedirs(os.path.dirname(self.log), exist_ok=True)
        open(self.log, "wb").close()
        deps.require(self.kind.packages(), install=self.options.install, log=self.log)
        given = self.options.source or self.profile.package
        if not given:
            raise ConfigError(
                "--source", "", f"the profile {self.profile.name} names no source package: give one"
            )
        with self.live.stage("source"):
            source = sources.obtain(given, refresh=self.options.refresh, progress=self.live.note)
        base = self._base(source)
        names = tree.files(base)
        records = {build.name: self._trace(build, base, names) for build in self.profile.builds}
        if self.profile.kind == "qemu":
            prove.require_offer(self.kind, {name: record for name, (record, _) in records.items()})
        pruned = self._prune(base, names, {name: record for name, (record, _) in records.items()})
        proof = self._prove(base, pruned, {name: record for name, (record, _) in records.items()})
        return Outcome(self, source, base, names, records, pruned, proof)

    # Stages

    def _base(self, source: Source) -> str:
        """The source with the profile's patches and files."""
        patches = [self._patch(name) for name in self.profile.patches]
        contents = [_read(path) for path in patches]
        facts = [
            source.digest,
            *contents,
            repr([(b.target, sorted(b.config.items())) for b in self.profile.builds]),
        ]

        def build(directory: str) -> None:
            target = os.path.join(directory, "tree")
            tree.require_room(cache.root(), _ROOM)
            tree.copy(source.root, source.names, target)
            for path in patches:
                _apply(path, target)
            self.kind.validate(target)
            self.kind.prepare(target)

        return os.path.join(self._entry("base", facts, ("tree",), build), "tree")

    def _trace(self, build: Build, base: str, names: list[str]) -> tuple[Record, str]:
        """The traced build, and the directory with its stripped products."""
        place = self.kind.place(build, base, self.options.jobs)
        facts = [base, repr(_made(build)), repr(self.profile.configure), _compiler(build)]
        facts.append(repr(sorted(place.environment.items())))

        def make(directory: str) -> None:
            self.live.begun(f"trace {build.name}")
            copy, keep = os.path.join(directory, "source"), os.path.join(directory, "products")
            os.mkdir(keep)
            tree.copy(base, names, copy)
            inside = self.kind.place(build, copy, self.options.jobs)
            try:
                record = Builder(self.kind, self.log, self.live.step).traced(build, inside, set(names), keep)
            except process.CommandError as error:
                if unknown := _UNKNOWN_OPTION.search(error.text):
                    where = f"{self.profile.name}: configure"
                    raise ConfigError(where, unknown[1], "this source has no such option") from None
                raise
            record.write(os.path.join(directory, "record.json"))
            for name in os.listdir(directory):
                if name not in ("record.json", "products"):
                    shutil.rmtree(os.path.join(directory, name))

        with self.live.stage(f"trace {build.name}"):
            entry = self._entry("trace", facts, ("record.json", "products"), make)
        return Record.load(os.path.join(entry, "record.json")), os.path.join(entry, "products")

    def _prune(self, base: str, names: list[str], records: dict[str, Record]) -> str:
        """A directory with ``source`` (the pruned tree) and ``result.json``."""
        made = plan.make(base, names, records.values(), self.profile.keep, self.kind.added())
        facts = [base, *sorted(made.read), "-", *sorted(made.configured), "-", *sorted(made.seen)]

        def build(directory: str) -> None:
            self.live.begun("prune")
            target = os.path.join(directory, "source")
            pruner = prune.Pruner(self.kind, base, names, plan=made, records=records, target=target)
            result = pruner.run(
                Builder(self.kind, self.log, self.live.step), self.options.jobs, self.live.note
            )
            _dump(os.path.join(directory, "result.json"), asdict(result))

        with self.live.stage("prune"):
            return self._entry("pruned", facts, ("source", "result.json"), build)

    def _prove(self, base: str, pruned: str, records: dict[str, Record]) -> str:
        """A directory with ``source`` (the tree that builds), ``proof.json``, ``products`` and records."""
        facts = [pruned, repr(self.options.functions), *(_compiler(build) for build in self.profile.builds)]
        facts += [repr((_made(build), build.tests)) for build in self.profile.builds]
        facts.append(repr(self.profile.spare))

        def build(directory: str) -> None:
            self.live.begun("prove")
            target, keep = os.path.join(directory, "source"), os.path.join(directory, "products")
            os.mkdir(keep)
            shutil.copytree(os.path.join(pruned, "source"), target, symlinks=True)
            live = {name for record in records.values() for name in (*record.symbols, *record.generated)}
            prover = prove.Prover(self.kind, base, target, live, self.live.note)
            if self.options.functions:
                prover.without_functions()
            proof = prover.run(Builder(self.kind, self.log, self.live.step), self.options.jobs, keep)
            problems = [
                text
                for name, record in proof.records.items()
                for text in prove.compare(records[name], record, name)
            ]
            if problems:
                raise HostError(f"the pruned tree builds something else: {'; '.join(problems)}")
            for name, record in proof.records.items():
                record.write(os.path.join(directory, f"{name}.json"))
            _dump(os.path.join(directory, "proof.json"), {"repairs": proof.repairs, "removed": proof.removed})

        with self.live.stage("prove"):
            return self._entry("proof", facts, ("source", "proof.json", "products"), build)

    def boots(self, proof: str) -> list[boot.Booted]:
        """Boot what was proven to build, as the profile says."""
        facts = [proof, *(repr(build.boot) for build in self.profile.builds)]

        def build(directory: str) -> None:
            self.live.begun("boot")
            done = []
            for one in self.profile.builds:
                place = self.kind.place(one, os.path.join(proof, "source"), self.options.jobs)
                (product,) = self.kind.products(one) if one.boot else ("",)
                for how in one.boot:
                    program = os.path.join(proof, "products", os.path.basename(product))
                    sysroot = place.environment.get("NEMU_SYSROOT", "")
                    result = boot.run(one, how, program, sysroot, self.live.note)
                    if not result.ok:
                        raise HostError(
                            f"the pruned build does not boot: {result.name}: {result.text[-300:]!r}"
                        )
                    done.append(asdict(result))
                    if other := boot.distribution(one, how):
                        done.append(asdict(other))
            _dump(os.path.join(directory, "boots.json"), done)

        with self.live.stage("boot"):
            entry = self._entry("boots", facts, ("boots.json",), build)
        return [boot.Booted(**one) for one in undump(os.path.join(entry, "boots.json"))]

    def lines(self, root: str) -> dict[str, int]:
        """Code lines by file of a tree in the cache."""

        def build(directory: str) -> None:
            self.live.begun("count")
            _dump(os.path.join(directory, "lines.json"), count.lines(root))

        with self.live.stage("count"):
            entry = self._entry("count", [root], ("lines.json",), build)
        return dict(undump(os.path.join(entry, "lines.json")))

    # Helpers

    def _patch(self, name: str) -> str:
        path = os.path.join(self.profile.folder, name)
        if not os.path.exists(path):
            raise ConfigError(f"{self.profile.name}: patches", name, "no such file beside the profile")
        return path

    def _entry(
        self, stage: str, facts: list[str], files: tuple[str, ...], build: Callable[[str], None]
    ) -> str:
        key = hashlib.sha256(
            "\0".join([FORMAT, self.profile.kind, *facts]).encode("utf-8", "surrogateescape")
        )
        return cache.entry(f"shrink-{stage}", key.hexdigest()[:20], files, build, keep=_KEEP)


@dataclass
class Outcome:
    """What a run found: directories in the cache, to report and publish from."""

    run: Run
    source: Source
    base: str
    names: list[str]
    records: dict[str, tuple[Record, str]]
    pruned: str
    proof: str


def _apply(path: str, target: str) -> None:
    done = subprocess.run(
        ["patch", "-p1", "-s", "-f", "--no-backup-if-mismatch", "-r", "-", "-i", path],
        cwd=target,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = process.reason(done.stdout + done.stderr)
        raise HostError(f"the patch {os.path.basename(path)} of the profile does not fit this source: {said}")


def _made(build: Build) -> Build:
    """``build`` without what is only checked afterwards."""
    return replace(build, machines=(), devices=(), boot=(), baseline="", tests=())


def _compiler(build: Build) -> str:
    """What identifies the compiler: another one may read other files."""
    cc = "aarch64-linux-gnu-gcc" if build.architecture == "arm64" else build.environment.get("CC", "cc")
    return process.output([cc.split()[0], "--version"]).splitlines()[0]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _dump(path: str, table: object) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(table, file)


def undump(path: str) -> Any:
    """What a stage left in a JSON file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return json.load(file)
