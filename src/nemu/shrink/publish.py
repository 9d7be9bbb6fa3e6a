"""What the user gets: a tree, a list of what was removed, a patch, a branch in git."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nemu.errors import ConfigError, HostError
from nemu.host import cache
from nemu.shrink import pages, process, report, tree

if TYPE_CHECKING:
    from nemu.shrink.run import Run
    from nemu.shrink.sources import Source

TREE = "tree"
REMOVED = "removed.txt"
PATCH = "edits.patch"


def report_and_publish(run: Run) -> str:
    """Do the whole ``run`` and publish it; the summary for people, and where everything is."""
    from nemu.shrink import compose

    options = run.options
    outcome = run.all()
    boots = run.boots(outcome.proof) if options.boot else []
    made = compose.report(outcome, boots)
    pruned = os.path.join(outcome.proof, "source")
    texts = {"report.json": made.to_json(), "report.html": pages.html(made)}
    results(options.out, outcome.base, outcome.names, pruned, texts)
    lines = [report.summary(made)]
    if options.git:
        text = report.message(made)
        if outcome.source.checkout:
            commit = branch(outcome.source.checkout, pruned, options.git, text)
            where = outcome.source.checkout
        else:
            commit = repository(options.out, pruned, outcome.source, options.git, text)
            where = os.path.join(options.out, "git")
        lines.append(f"branch {options.git} of {where}: {commit[:12]}\n")
    lines.append(f"{os.path.abspath(options.out)}/report.html\n")
    return "".join(lines)


def check(out: str, force: bool) -> None:
    """Raise ConfigError unless ``out`` can become the directory of the results."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ConfigError("--out", out, "is not a directory")
    if os.path.isdir(out) and os.listdir(out) and not force:
        raise ConfigError("--out", out, "is not empty (--force replaces what a former run put there)")
    parent = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(parent):
        raise ConfigError("--out", out, f"there is no directory {parent}")


def results(out: str, base: str, names: list[str], pruned: str, reports: dict[str, str]) -> None:
    """Put everything into ``out``; it appears whole or not at all."""
    parent = os.path.dirname(os.path.abspath(out))
    with cache.scratch(parent) as scratch:
        fresh = os.path.join(scratch, "new")
        os.mkdir(fresh)
        left = tree.files(pruned)
        tree.copy(pruned, left, os.path.join(fresh, TREE))
        gone = sorted(set(names) - set(left))
        _write(os.path.join(fresh, REMOVED), "".join(f"{name}\n" for name in gone))
        _write(os.path.join(fresh, PATCH), patch(base, pruned, sorted(set(names) & set(left)), left))
        for name, text in reports.items():
            _write(os.path.join(fresh, name), text)
        if os.path.isdir(out):
            os.rename(out, os.path.join(scratch, "old"))
        os.rename(fresh, out)


def patch(base: str, pruned: str, common: Iterable[str], left: Iterable[str]) -> str:
    """A patch (``patch -p1``) from ``base`` to ``pruned`` for files that stay; removals are in the list."""
    common = set(common)
    with tempfile.TemporaryDirectory(prefix="nemu-patch-") as folder:
        changed = [name for name in left if _differs(base, pruned, name)]
        for side, root in (("a", base), ("b", pruned)):
            there = [name for name in changed if side == "b" or name in common]
            tree.copy(root, there, os.path.join(folder, side))
            os.makedirs(os.path.join(folder, side), exist_ok=True)
        argv = ["diff", "-Naur", "a", "b"]
        return _diff(argv, folder)


def _differs(base: str, pruned: str, name: str) -> bool:
    one, other = os.path.join(base, name), os.path.join(pruned, name)
    if not os.path.lexists(one) or os.path.islink(one) or os.path.islink(other):
        return not os.path.lexists(one)
    with open(one, "rb") as first, open(other, "rb") as second:
        return first.read() != second.read()


def _diff(argv: list[str], folder: str) -> str:
    import subprocess

    done = subprocess.run(argv, cwd=folder, capture_output=True, check=False)
    if done.returncode > 1:
        raise HostError(f"diff failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8", "surrogateescape")


def branch(checkout: str, pruned: str, name: str, message: str) -> str:
    """A branch ``name`` in the repository of ``checkout`` whose one new commit has the pruned tree.

    Neither working tree nor index of the checkout is touched.  An older branch of this name is replaced.
    """
    head = process.output(["git", "-C", checkout, "rev-parse", "HEAD"]).strip()
    common = process.output(
        ["git", "-C", checkout, "rev-parse", "--path-format=absolute", "--git-common-dir"]
    ).strip()
    with tempfile.TemporaryDirectory(prefix="nemu-index-") as folder:
        environment = {
            "GIT_DIR": common,
            "GIT_WORK_TREE": pruned,
            "GIT_INDEX_FILE": os.path.join(folder, "index"),
        }
        _run_git(["add", "--all", "--force", "."], environment, pruned)
        written = _run_git(["write-tree"], environment, pruned).strip()
        commit = _run_git(["commit-tree", written, "-p", head, "-m", message], environment, pruned).strip()
        _run_git(["update-ref", f"refs/heads/{name}", commit], environment, pruned)
    return commit


def repository(out: str, pruned: str, source: Source, name: str, message: str) -> str:
    """A new repository in ``out`` for a source without history: the source, then the pruned tree."""
    place = os.path.join(out, "git")
    shutil.rmtree(place, ignore_errors=True)
    process.output(["git", "init", "--quiet", "--initial-branch=original", place])
    tree.copy(source.root, source.names, place)
    who = ["-c", "user.name=nemu shrink", "-c", "user.email=nemu@localhost"]
    process.output(["git", "-C", place, "add", "--all", "--force", "."])
    process.output(["git", "-C", place, *who, "commit", "--quiet", "-m", "the source as it was"])
    commit = branch(place, pruned, name, message)
    process.output(["git", "-C", place, "checkout", "--quiet", name])
    return commit


def _run_git(words: list[str], environment: dict[str, str], cwd: str) -> str:
    who = ["-c", "user.name=nemu shrink", "-c", "user.email=nemu@localhost"]
    return process.output(["git", *who, *words], cwd=cwd, environment=environment)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
