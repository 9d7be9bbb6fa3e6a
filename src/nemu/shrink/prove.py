"""The proof: the pruned tree alone is built from scratch, and its products offer what they did before.

A build that fails because a file or a function is missing gets it back, and goes on; this is repeated a
bounded number of times and every repair is reported.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nemu.errors import HostError
from nemu.shrink import functions, tree
from nemu.shrink.functions import Removal
from nemu.shrink.kinds import Kind, Place
from nemu.shrink.process import CommandError
from nemu.shrink.record import Builder, Record, clean

ROUNDS = 12
_MISSING_NAME = re.compile(
    r"implicit declaration of function '(\w+)'|'(\w+)' undeclared|undefined reference to `(\w+)'"
    r"|'(\w+)' used but never defined|conflicting types for '(\w+)'|unknown type name '(\w+)'"
    r"|previous (?:implicit )?declaration of '(\w+)'"
)
_MISSING_FILE = re.compile(
    r"(?:fatal error: |No rule to make target '|can't (?:open|read) |cannot (?:open|find|access) |File )"
    r"['\"]?([\w./+-]+)['\"]?"
)
_ERROR_IN = re.compile(r"^([\w./+-]+\.(?:c|h|inc)):\d+:\d+: (?:fatal )?error:", re.MULTILINE)


@dataclass
class Proof:
    """``records`` by build; ``repairs``: what had to be put back; ``removed``: (file, function)."""

    records: dict[str, Record] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)


class Prover:
    """Builds in ``target``, which holds the pruned tree; ``base`` is the tree it was pruned from."""

    def __init__(
        self, kind: Kind, base: str, target: str, live: set[str], note: Callable[[str], None]
    ) -> None:
        self.kind = kind
        self.base = base
        self.target = target
        self.live = live
        self.note = note
        self.spared = set(kind.profile.spare)
        self.proof = Proof()
        self._pruned = f"{target}-files"
        self._written: set[str] = set()
        self._there: set[str] = set()

    def without_functions(self) -> None:
        """Remove from the target the functions that no build links.  May be called again after a repair."""
        if not os.path.exists(self._pruned):
            shutil.copytree(self.target, self._pruned, symlinks=True)
        names = tree.files(self._pruned)
        removal = functions.find(self._pruned, names, self.live, self.spared, names)
        self.proof.removed = removal.functions
        self._apply(removal)

    def run(self, builder: Builder, jobs: int, keep: str) -> Proof:
        """Build everything; raise CommandError or HostError when the tree cannot be made to build."""
        self._there = set(tree.files(self.target))
        for build in self.kind.profile.builds:
            place = self.kind.place(build, self.target, jobs)
            self._clean(place)
            for attempt in range(ROUNDS + 1):
                try:
                    self.proof.records[build.name] = builder.plain(build, place, keep)
                    break
                except CommandError as error:
                    if attempt == ROUNDS or not self._repair(error):
                        raise
            self._clean(place)
        shutil.rmtree(self._pruned, ignore_errors=True)
        return self.proof

    def _clean(self, place: Place) -> None:
        """Delete what a build made: its own directory, or its files among the sources."""
        if place.directory.startswith(place.tree):
            made = set(tree.files(self.target)) - self._there
            tree.remove(self.target, sorted(made))
        else:
            clean(place.directory)

    def _apply(self, removal: Removal) -> None:
        """Write what changed since the last time, so that only that is compiled again."""
        for name in self._written - set(removal.texts):
            shutil.copy2(os.path.join(self._pruned, name), os.path.join(self.target, name))
            os.utime(os.path.join(self.target, name))
        for name, text in removal.texts.items():
            path = os.path.join(self.target, name)
            with open(path, "rb") as file:
                same = file.read() == text
            if not same:
                with open(path, "wb") as file:
                    file.write(text)
        self._written = set(removal.texts)

    def _repair(self, error: CommandError) -> bool:
        """Put back what the failure is about; False when that is nothing that was removed."""
        names = {next(filter(None, match)) for match in _MISSING_NAME.findall(error.text)}
        back = sorted({name for _, name in self.proof.removed} & names)
        if back:
            self.spared |= set(back)
            self._say(f"functions put back: {', '.join(back)}")
            self.without_functions()
            return True
        if self._restore_files(_MISSING_FILE.findall(error.text)):
            return True
        return self._spare_all_in(_ERROR_IN.findall(error.text))

    def _spare_all_in(self, files: Iterable[str]) -> bool:
        """Put back every function of the files in which errors were reported."""
        names = {os.path.normpath(file).lstrip("./") for file in files}
        inside = {
            function
            for file, function in self.proof.removed
            if any(name.endswith(file) for name in names) and function not in self.spared
        }
        if not inside:
            return False
        self.spared |= inside
        self._say(f"all functions of {', '.join(sorted(names))} put back")
        self.without_functions()
        return True

    def _restore_files(self, mentioned: Iterable[str]) -> bool:
        """Put back the files of the base that ``mentioned`` may mean and that are not there."""
        known = tree.files(self.base)
        back = []
        for word in mentioned:
            end = "/" + os.path.normpath(word).lstrip("./")
            found = [name for name in known if f"/{name}".endswith(end)]
            back += [name for name in found if not self._is_there(name)]
        for name in sorted(set(back)):
            for root in {self.target, self._pruned} if os.path.exists(self._pruned) else {self.target}:
                if os.path.lexists(os.path.join(root, name)):
                    os.unlink(os.path.join(root, name))
                tree.copy(self.base, [name], root)
            self._there.add(name)
            self._say(f"{name} put back: the build failed without it")
        return bool(back)

    def _is_there(self, name: str) -> bool:
        """Whether the file is in the target, and not only as an empty placeholder."""
        path = os.path.join(self.target, name)
        if not os.path.exists(path):
            return os.path.islink(path)
        return os.path.getsize(path) > 0 or os.path.getsize(os.path.join(self.base, name)) == 0

    def _say(self, text: str) -> None:
        self.proof.repairs.append(text)
        self.note(text)


def compare(before: Record, after: Record, build_name: str) -> list[str]:
    """What the product lost: machines, devices, CPU models, or a shared library that it has in addition.

    A machine or device that is missing now is an error of the pruning, whatever else may work.
    """
    problems = []
    for what in ("machines", "devices", "cpus"):
        old, new = set(getattr(before, what)), set(getattr(after, what))
        problems += [f"{build_name}: {what} lost: {', '.join(sorted(old - new))}"] if old - new else []
        problems += [f"{build_name}: {what} new: {', '.join(sorted(new - old))}"] if new - old else []
    return problems


def require_offer(kind: Kind, records: dict[str, Record]) -> None:
    """Raise HostError unless each product offers all machines and exactly the devices of the profile."""
    for build in kind.profile.builds:
        record = records[build.name]
        lost = [name for name in build.machines if name not in record.machines]
        if lost:
            raise HostError(f"{build.name}: builds, but has no machine {', '.join(lost)}")
        if build.devices:
            wanted, found = set(build.devices), set(record.devices)
            missing, more = ", ".join(sorted(wanted - found)), ", ".join(sorted(found - wanted))
            if missing:
                raise HostError(
                    f"{build.name}: builds, but lost devices that the profile lists: {missing} "
                    "(a default of Kconfig that the profile has to name?)"
                )
            if more:
                raise HostError(f"{build.name}: has devices that the profile does not list: {more}")
