"""Live progress: the stages with their expected times, learnt from earlier runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemu.host import cache

# Seconds on two idle cores, until a run here has shown better.
_FIRST_GUESS = {"source": 20.0, "trace": 240.0, "prune": 60.0, "prove": 500.0, "boot": 120.0, "count": 60.0}


class Live:
    """Tells what is being done: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        self.times = _load()
        self.seconds: dict[str, float] = {}
        self._bar: Any = None
        self._task: Any = None
        self._name = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show ``name`` while the stage runs; its time is remembered when it was a real one."""
        start = time.monotonic()
        self._name = name
        expected = self.times.get(name, _FIRST_GUESS.get(name.split(maxsplit=1)[0], 10.0))
        if sys.stderr.isatty():
            self._open(name, expected)
        try:
            yield
        finally:
            took = time.monotonic() - start
            self.seconds[name] = took
            self._close()
        if took > 2:
            self.times[name] = took
            _save(self.times)
            self.note(f"{name}: {took:.0f} s")

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` commands of the stage."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def begun(self, name: str) -> None:
        """A stage that is not in the cache begins to work: say so once, with its expected time."""
        expected = self.times.get(name, _FIRST_GUESS.get(name.split(maxsplit=1)[0], 10.0))
        if self._bar is None:
            self.note(f"{name} ... (about {expected:.0f} s)")

    def note(self, text: str) -> None:
        """One line that stays."""
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        if self._bar is not None:
            self._bar.console.print(f"nemu: {line}", markup=False, highlight=False)
        else:
            sys.stderr.write(f"nemu: {line}\n")
            sys.stderr.flush()

    def _open(self, name: str, expected: float) -> None:
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError:
            return  # a terminal without rich gets the same lines as a log
        from rich.console import Console

        columns = (
            TextColumn("nemu: {task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn(f"of about {expected:.0f} s"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(name, total=1)
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _path() -> str:
    return os.path.join(cache.root(), "shrink-times.json")


def _load() -> dict[str, float]:
    try:
        with open(_path(), encoding="utf-8") as file:
            table = json.load(file)
        return {str(name): float(value) for name, value in table.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _save(times: dict[str, float]) -> None:
    try:
        with open(f"{_path()}.new", "w", encoding="utf-8") as file:
            json.dump(times, file)
        os.replace(f"{_path()}.new", _path())
    except OSError:
        pass  # only an estimate is lost
