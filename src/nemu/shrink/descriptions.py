"""Pruning the build descriptions of a tree: Meson's, Kconfig's, and QEMU's list of trace events."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from nemu.shrink import kconfig, meson
from nemu.shrink.plan import Plan, folders

_TRACE_EVENTS = "trace-events"
_EXTERNAL = "Kconfig.host"  # symbols that the build system passes to Kconfig


@dataclass
class Mercy:
    """What an earlier attempt showed to be needed after all."""

    files: set[str] = field(default_factory=set)  # descriptions that stay as they are
    variables: set[str] = field(default_factory=set)  # variables whose assignment stays


@dataclass
class Pruned:
    """``texts``: new contents by name, "" for a description that is not needed any more."""

    texts: dict[str, str]
    gone: set[str]


def prune_meson(root: str, names: set[str], plan: Plan, mercy: Mercy) -> Pruned:
    """New texts for the meson.build files among ``names`` below ``root``.

    ``gone`` are files of the plan that only descriptions needed which are gone now.
    """
    originals = _read_all(
        root, sorted(name for name in plan.configured if os.path.basename(name) == meson.FILE)
    )
    if meson.FILE not in originals:
        return Pruned({}, set())
    trees = {name: meson.parse(text, name) for name, text in originals.items()}
    cut = _idle_folders(originals, trees, plan, mercy)
    # Kconfig has descriptions of its own, and says by itself which of them it needs.
    others = {name for name in plan.configured if os.path.basename(name) != kconfig.FILE}
    gone_files = {name for name in others if _below(name, cut)}
    kept = (plan.read | plan.configured) - gone_files
    texts = {name: text for name, text in originals.items() if name not in gone_files}
    while True:
        view = _View(names, kept, cut, plan)
        new = meson.Pruner(
            {n: t for n, t in texts.items() if n not in mercy.files}, view.gone, mercy.variables
        ).run()
        empty = {os.path.dirname(name) for name, text in new.items() if not text and name != meson.FILE}
        if empty <= cut:
            break
        cut |= empty  # the subdir() that leads there goes in the next round
    gone_files |= {name for name in texts if not new.get(name, "x")}
    gone_files |= silent_events(plan) if meson.FILE not in mercy.files else set()
    return Pruned({name: text for name, text in new.items() if text and text != originals[name]}, gone_files)


def prune_kconfig(root: str, on: set[str], mentioned: set[str]) -> set[str]:
    """Prune Kconfig below ``root`` in place; the files that went."""
    if not os.path.exists(os.path.join(root, kconfig.FILE)):
        return set()
    fixed = mentioned | {name for name in kconfig.files(root) if os.path.basename(name) == _EXTERNAL}
    return kconfig.prune(root, on, fixed)


class _View:
    """Tells the Meson pruner which strings name something that is gone."""

    def __init__(self, names: set[str], kept: frozenset[str], cut: set[str], plan: Plan) -> None:
        self.names = names
        self.kept = kept
        self.cut = cut
        self.silent = silent_events(plan)

    def gone(self, folder: str, literal: str) -> bool:
        path = os.path.normpath(os.path.join(folder, literal))
        if path.startswith(("/", "..")):
            return False
        if path in self.names:
            return path not in self.kept
        if path in self.cut or _below(path, self.cut):
            return True
        # Events that nothing raises any more: named by their folder, in the description at the top.
        return not folder and os.path.join(path, _TRACE_EVENTS) in self.silent


def silent_events(plan: Plan) -> set[str]:
    """Files that declare trace events for sources which are all gone."""
    sources = {os.path.dirname(name) for name in plan.read if name.endswith((".c", ".c.inc", ".m", ".cc"))}
    events = {name for name in plan.read if os.path.basename(name) == _TRACE_EVENTS}
    return {name for name in events if os.path.dirname(name) not in sources}


def _idle_folders(texts: dict[str, str], trees: dict[str, Any], plan: Plan, mercy: Mercy) -> set[str]:
    """Folders with a description from which no build takes a file.

    A variable that such a description assigns may be used elsewhere.  Where that is in a branch, which may
    never be taken, only trying shows whether it is missed; ``mercy`` knows what was.
    """
    busy = folders(plan.read - silent_events(plan))
    staying = [one for name, one in trees.items() if os.path.dirname(name) in {*busy, ""}]
    needed = {name for one in staying for name in meson.surely_used(one)}
    needed -= {name for one in staying for name in meson.assigned(one)}
    needed |= mercy.variables
    idle: set[str] = set()
    for name in texts:
        folder = os.path.dirname(name)
        if not folder or folder in busy or _below(name, idle):
            continue
        inside = {other for other in texts if other.startswith(folder + "/")}
        variables = {variable for other in inside for variable in meson.assigned(trees[other])}
        if not inside & mercy.files and not variables & needed:
            idle.add(folder)
    return idle


def _below(name: str, cut: set[str]) -> bool:
    folder = os.path.dirname(name)
    while folder.strip("/"):
        if folder in cut:
            return True
        folder = os.path.dirname(folder)
    return False


def _read_all(root: str, names: list[str]) -> dict[str, str]:
    texts = {}
    for name in names:
        with open(os.path.join(root, name), encoding="utf-8", errors="surrogateescape") as file:
            texts[name] = file.read()
    return texts
