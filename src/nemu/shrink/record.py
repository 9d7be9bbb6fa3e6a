"""One build, and all that is learned from it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from nemu.shrink import binaries, csource, process, trace
from nemu.shrink.kinds import Kind, Place, Step
from nemu.shrink.profile import Build

_GENERATED = (".c", ".h", ".inc")


@dataclass
class Record:
    """What a build touched and made.  Names are relative to the tree.

    ``read`` in any step that compiles, ``configured`` only while it was configured, ``seen`` never opened.
    ``generated``: identifiers in sources that the build wrote itself.
    """

    read: list[str] = field(default_factory=list)
    configured: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    fingerprint: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    generated: list[str] = field(default_factory=list)
    programs: dict[str, dict[str, object]] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    cpus: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: str) -> Record:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return cls(**json.load(file))


class Builder:
    """Runs the builds of one profile; every output goes to ``log``."""

    def __init__(
        self, kind: Kind, log: str, step: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.kind = kind
        self.log = log
        self.step = step

    def configure(self, build: Build, place: Place, names: set[str]) -> Record:
        """Only the steps that configure, traced."""
        record = Record()
        for step in self.kind.steps(build, place):
            if not step.configures:
                break
            self._traced(step, place, names, record)
        record.fingerprint = self.kind.fingerprint(build, place)
        record.settings = self.kind.settings(build, place)
        return record

    def traced(self, build: Build, place: Place, names: set[str], keep: str) -> Record:
        """The whole build, traced; stripped products are put into the directory ``keep``."""
        record = Record()
        for step in self.kind.steps(build, place):
            if step.known:
                start = time.monotonic()
                self._run(step, step.argv, place)
                record.seconds += time.monotonic() - start
            else:
                self._traced(step, place, names, record)
        read, configured = self.kind.known(build, place, names)
        record.read = sorted({*record.read, *read})
        record.configured = sorted({*record.configured, *configured} - {*record.read})
        record.seen = sorted({*record.seen} - {*record.read, *record.configured})
        self._learn(build, place, record, keep)
        return record

    def plain(self, build: Build, place: Place, keep: str) -> Record:
        """The whole build as a user would make it.  Goes on where an earlier attempt ended."""
        record = Record()
        start = time.monotonic()
        for step in self.kind.steps(build, place):
            if not (step.configures and self._is_configured(place)):
                os.makedirs(place.directory, exist_ok=True)
                self._run(step, step.argv, place)
        record.seconds = time.monotonic() - start
        for check in self.kind.checks(build, place):
            self._run(check, check.argv, place)
        self._learn(build, place, record, keep)
        return record

    @staticmethod
    def _is_configured(place: Place) -> bool:
        return os.path.exists(os.path.join(place.directory, "build.ninja"))

    def _traced(self, step: Step, place: Place, names: set[str], record: Record) -> None:
        os.makedirs(place.directory, exist_ok=True)
        calls = f"{self.log}.trace"
        start = time.monotonic()
        try:
            self._run(step, [*trace.command(calls), *step.argv], place)
            record.seconds += time.monotonic() - start
            with open(calls, encoding="utf-8", errors="surrogateescape") as lines:
                touched = trace.parse(lines, place.tree, names, (place.directory, place.tree))
        finally:
            if os.path.exists(calls):
                os.unlink(calls)
        if step.configures:
            record.configured = sorted({*record.configured, *touched.opened})
        else:
            record.read = sorted({*record.read, *touched.opened})
        record.seen = sorted({*record.seen, *touched.seen} - {*record.configured, *record.read})

    def _run(self, step: Step, argv: list[str] | tuple[str, ...], place: Place) -> None:
        process.run(
            argv,
            what=step.what,
            cwd=place.directory,
            log=self.log,
            environment=place.environment,
            step=self.step,
        )

    def _learn(self, build: Build, place: Place, record: Record, keep: str) -> None:
        record.fingerprint = self.kind.fingerprint(build, place)
        record.settings = self.kind.settings(build, place)
        found: set[str] = set()
        strip = "aarch64-linux-gnu-strip" if build.architecture == "arm64" else "strip"
        for name in self.kind.products(build):
            path = os.path.join(place.directory, name)
            if not os.path.exists(path):
                raise process.CommandError(f"{build.name}", self.log, f"the build made no {name}")
            stripped = os.path.join(keep, os.path.basename(name))
            record.programs[name] = binaries.measure(path, stripped, strip).to_json()
            found.update(binaries.symbols(path))
            offer = self.kind.offer(build, path, place)
            record.machines += offer.machines
            record.devices += offer.devices
            record.cpus += offer.cpus
        record.symbols = sorted(found)
        record.generated = sorted(_generated(place)) if not place.directory.startswith(place.tree) else []


def _generated(place: Place) -> set[str]:
    """The identifiers in C sources that the build wrote into its own directory."""
    words: set[str] = set()
    for folder, _, members in os.walk(place.directory):
        for member in members:
            path = os.path.join(folder, member)
            if member.endswith(_GENERATED) and not os.path.islink(path):
                with open(path, "rb") as file:
                    words |= csource.words(file.read())
    return words


def clean(directory: str) -> None:
    """Delete a build's directory."""
    shutil.rmtree(directory, ignore_errors=True)
