"""The pruned tree: the files of the plan, build descriptions without what is gone, and few empty files.

A build system wants some files to be there that nobody reads.  Such a *placeholder* is empty.  To find out
which ones the pruned descriptions still want, every candidate is put there, the tree is configured under a
trace, and those that nobody looked at are deleted again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from nemu.errors import HostError
from nemu.shrink import descriptions, meson, tree
from nemu.shrink.descriptions import Mercy
from nemu.shrink.kinds import Kind
from nemu.shrink.plan import Plan
from nemu.shrink.process import CommandError
from nemu.shrink.profile import Build
from nemu.shrink.record import Builder, Record, clean

ROUNDS = 16
_MESON_ERROR = re.compile(r"^(\S*?)(?:meson\.build):(\d+):\d+: ERROR: (.*)$", re.MULTILINE)
_NO_FOLDER = re.compile(r"Non-existent build file '(\S+)'")
_UNKNOWN = re.compile(r'Unknown variable "(\w+)"')
_FOR_NOBODY = re.compile(r"< (\S+)$")


@dataclass
class Result:
    """``kept``: real files; ``placeholders``: empty ones; ``edited``: descriptions with new text."""

    kept: list[str] = field(default_factory=list)
    placeholders: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)


class Pruner:
    """Prunes one source for one profile into the directory ``target``."""

    def __init__(
        self,
        kind: Kind,
        root: str,
        names: list[str],
        *,
        plan: Plan,
        records: dict[str, Record],
        target: str,
    ) -> None:
        self.kind = kind
        self.root = root
        self.names = set(names)
        self.plan = plan
        self.records = records
        self.target = target
        self.mercy = Mercy()
        self.result = Result()

    def run(self, builder: Builder, jobs: int, note: Callable[[str], None] = lambda text: None) -> Result:
        """Prune until every build configures as it did before.  Raises HostError when that fails."""
        for _ in range(ROUNDS):
            self._lay_out()
            if not any(record.fingerprint for record in self.records.values()):
                # No build system to ask: what the build misses is put back when it fails.
                tree.remove(self.target, self.result.placeholders)
                self.result.placeholders = []
                return self.result
            try:
                wanted, lost = self._configure_all(builder, jobs)
            except CommandError as error:
                self._learn_from(error, note)
                continue
            if lost:
                self._restore_for(lost, note)
                continue
            idle = sorted(set(self.result.placeholders) - wanted)
            tree.remove(self.target, idle)
            self.result.placeholders = sorted(wanted & set(self.result.placeholders))
            return self.result
        raise HostError(
            f"the pruned tree does not configure after {ROUNDS} rounds of repair (see {builder.log})"
        )

    def _lay_out(self) -> None:
        """Make the tree: files of the plan, new descriptions, every possible placeholder."""
        shutil.rmtree(self.target, ignore_errors=True)
        os.makedirs(self.target)
        pruned = descriptions.prune_meson(self.root, self.names, self.plan, self.mercy)
        kept = (self.plan.read | self.plan.configured) - pruned.gone
        tree.copy(self.root, sorted(kept), self.target)
        for name, text in pruned.texts.items():
            with open(
                os.path.join(self.target, name), "w", encoding="utf-8", errors="surrogateescape"
            ) as file:
                file.write(text)
        kept -= self._prune_kconfig()
        edited = [name for name in kept if not self._same(name)]
        placeholders = sorted((self.plan.seen | self.plan.configured | pruned.gone) - kept)
        placeholders = [name for name in placeholders if self._can_be_empty(name)]
        for name in placeholders:
            place = os.path.join(self.target, name)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            open(place, "x").close()
            shutil.copymode(os.path.join(self.root, name), place)
        self.result = Result(sorted(kept), placeholders, sorted(edited), self.result.repairs)

    def _prune_kconfig(self) -> set[str]:
        on = {name for record in self.records.values() for name in record.settings}
        mentioned = {name for build in self.kind.profile.builds for name in build.config}
        return descriptions.prune_kconfig(self.target, on, mentioned)

    def _same(self, name: str) -> bool:
        mine, theirs = os.path.join(self.target, name), os.path.join(self.root, name)
        if os.path.islink(mine):
            return True
        with open(mine, "rb") as one, open(theirs, "rb") as other:
            return one.read() == other.read()

    def _can_be_empty(self, name: str) -> bool:
        path = os.path.join(self.root, name)
        return not os.path.islink(path) and os.path.basename(name) != meson.FILE

    def _configure_all(self, builder: Builder, jobs: int) -> tuple[set[str], list[str]]:
        """Configure each build; the files it looked at, and what it would not compile any more."""
        wanted: set[str] = set()
        lost: list[str] = []
        for build in self.kind.profile.builds:
            place = self.kind.place(build, self.target, jobs)
            clean(place.directory)
            there = {*self.result.kept, *self.result.placeholders}
            record = builder.configure(build, place, there)
            wanted |= {*record.configured, *record.seen}
            lost += self._lost(build, record)
            clean(place.directory)
        return wanted, lost

    def _lost(self, build: Build, record: Record) -> list[str]:
        before = self.records[build.name]
        silent = descriptions.silent_events(self.plan)
        events = {
            "trace-" + os.path.dirname(name).replace("/", "_").replace("-", "_") + ".c" for name in silent
        }
        lost = list({*before.fingerprint} - {*record.fingerprint})
        lost = [line for line in lost if os.path.basename(line.split(" < ")[1]) not in events]
        lost += [f"CONFIG_{name}" for name in {*before.settings} ^ {*record.settings}]
        return sorted(lost)

    def _learn_from(self, error: CommandError, note: Callable[[str], None]) -> None:
        """Keep what the failure of a configuration shows to be needed."""
        found = _MESON_ERROR.search(error.text)
        if not found:
            raise error
        where = os.path.normpath(found[1].partition(os.path.basename(self.target) + "/")[2] + meson.FILE)
        unknown, no_folder = _UNKNOWN.search(found[3]), _NO_FOLDER.search(found[3])
        where = no_folder[1] if no_folder else where
        if unknown and unknown[1] not in self.mercy.variables:
            self.mercy.variables.add(unknown[1])
            text = f"the Meson variable {unknown[1]} is needed by {where}"
        elif where not in self.mercy.files:
            self.mercy.files.add(where)
            text = f"{where} stays as it is: {found[3]}"
        else:
            raise error
        self.result.repairs.append(text)
        note(text)

    def _restore_for(self, lost: list[str], note: Callable[[str], None]) -> None:
        """Leave the descriptions alone that name the sources in ``lost``."""
        restored = set()
        for line in lost:
            source = _FOR_NOBODY.search(line)
            folder = os.path.dirname(source[1]) if source else ""
            while folder and os.path.join(folder, meson.FILE) not in self.names:
                folder = os.path.dirname(folder)
            restored.add(os.path.join(folder, meson.FILE))
        if restored <= self.mercy.files:
            raise HostError(f"the pruned tree would not build {lost[0]} any more ({len(lost)} in all)")
        self.mercy.files |= restored
        text = f"{len(lost)} compilations were lost: {', '.join(sorted(restored)[:5])} stay as they are"
        self.result.repairs.append(text)
        note(text)
