"""The figures of one run, before and after: as JSON, as text for a terminal, and as a commit message."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from nemu.shrink.history import Surface

FIRMWARE = "roms"  # QEMU's bundled firmware sources: most of its lines


@dataclass
class Side:
    """One product, before or after.  Sizes in bytes."""

    size: int = 0
    text: int = 0
    libraries: int = 0
    machines: int = 0
    devices: int = 0
    cpus: int = 0
    syscalls: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Report:
    """Everything that is reported.  ``lines`` maps files to code lines."""

    profile: str
    level: str
    source: str
    counter: str
    files_before: int = 0
    files_after: int = 0
    lines_before: dict[str, int] = field(default_factory=dict)
    lines_after: dict[str, int] = field(default_factory=dict)
    lines_files_only: int = 0
    placeholders: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    functions: list[tuple[str, str]] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    before: dict[str, Side] = field(default_factory=dict)
    after: dict[str, Side] = field(default_factory=dict)
    baseline: str = ""
    boots: list[dict[str, Any]] = field(default_factory=list)
    surface: Surface = field(default_factory=Surface)
    seconds: dict[str, float] = field(default_factory=dict)

    def total(self, after: bool = False, firmware: bool = True) -> int:
        """Code lines in all, or without the firmware sources."""
        lines = self.lines_after if after else self.lines_before
        return sum(
            number for name, number in lines.items() if firmware or not name.startswith(f"{FIRMWARE}/")
        )

    def to_json(self) -> str:
        """``lines`` by file would be the greatest part of it: they are given by first folder."""
        from nemu.shrink import count

        table = asdict(self)
        for key in ("lines_before", "lines_after"):
            table[key] = {"total": sum(table[key].values()), "by_folder": count.by_folder(table[key])}
        table["without_roms"] = {"before": self.total(firmware=False), "after": self.total(True, False)}
        return json.dumps(table, indent=1) + "\n"


def share(part: float, whole: float) -> str:
    """``part`` in percent of ``whole``."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(figure, before, after, what is left)."""
    found = [_row("files", report.files_before, report.files_after)]
    found.append(_row("code lines", report.total(), report.total(True)))
    if any(name.startswith(f"{FIRMWARE}/") for name in report.lines_before):
        found.append(
            _row("code lines without roms/", report.total(firmware=False), report.total(True, False))
        )
    if report.functions:
        found.append(_row("  of which functions took", report.lines_files_only, report.total(True)))
    for name, after in report.after.items():
        before = report.before.get(name, Side())
        for figure in ("size", "text"):
            label = {"size": "bytes, stripped", "text": "bytes of text"}[figure]
            found.append(_row(f"{name}: {label}", getattr(before, figure), getattr(after, figure)))
        for figure, label in (
            ("libraries", "shared libraries"),
            ("machines", "machines"),
            ("devices", "devices"),
            ("cpus", "CPU models"),
        ):
            if getattr(before, figure) or getattr(after, figure):
                found.append(_row(f"{name}: {label}", getattr(before, figure), getattr(after, figure)))
        if after.syscalls:
            found.append(_row(f"{name}: system calls in the boot", len(before.syscalls), len(after.syscalls)))
    if report.surface.known:
        gone = len(report.surface.gone)
        found.append(("past CVE fixes only in code that is gone", str(report.surface.known), str(gone),
                      share(gone, report.surface.known) + " gone"))  # fmt: skip
    return found


def summary(report: Report) -> str:
    """The figures as plain text, one a line."""
    head = f"{report.source} for the profile {report.profile}"
    lines = [head + (f" at the level {report.level}" if report.level else "")]
    table = rows(report)
    width = max(len(row[0]) for row in table)
    lines += [f"  {name:{width}}  {old:>12}  ->  {new:>12}  {left}" for name, old, new, left in table]
    lines.append(f"  empty files that only have to be there: {len(report.placeholders)}")
    if report.functions:
        lines.append(f"  functions and variables removed inside files: {len(report.functions)}")
    for boot in report.boots:
        lines.append(f"  boot {boot['name']}: {'ok' if boot['ok'] else 'FAILED'} ({boot['where']})")
    lines += [f"  repaired: {text}" for text in report.repairs]
    return "\n".join(lines) + "\n"


def message(report: Report) -> str:
    """A commit message with the figures."""
    subject = f"shrink: only what {report.profile} needs"
    return f"{subject}\n\n{summary(report)}\nCode lines are counted by {report.counter}.\n"


def _row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}" if before else "-", f"{after:,}", share(after, before)
