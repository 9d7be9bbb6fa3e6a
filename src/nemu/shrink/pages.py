"""``report.html``: one static page without anything from elsewhere, pictures as SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from nemu.shrink.report import Report, rows, share

WIDTH, HEIGHT = 1100, 560
_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .9em; border-bottom: 1px solid #8884 }
td + td, th + th { text-align: right } svg { max-width: 100%; height: auto } text { font: 12px system-ui }
details { margin: .5em 0 } .note { color: #777 } .gone { color: #c33 } .kept { color: #282 }
"""
_GONE, _KEPT = "#d9a9a3", "#4f9d69"


def html(report: Report) -> str:
    """The whole page."""
    title = f"{report.source}: only what {report.profile} needs"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=note>Code lines are counted by {escape(report.counter)}. "
        f"Before: {escape(report.baseline or 'the whole source')}.</p>",
        _table(("", "before", "after", "left"), rows(report)),
        "<h2>What was removed, and what is left</h2>",
        "<p>Area: code lines of each folder. "
        "<span class=kept>Green</span> is left, <span class=gone>red</span> is gone.</p>",
        treemap(_folders(report)),
        "<h2>Code lines by folder</h2>",
        bars(_folders(report)),
        *_boots(report),
        *_surface(report),
        _list("Repairs", report.repairs),
        _list("Empty files that only have to be there", report.placeholders),
        _list("Build descriptions that were edited", report.edited),
        _list("Functions and variables removed", [f"{file}: {name}" for file, name in report.functions]),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    head += f"<style>{_STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def _folders(report: Report) -> list[tuple[str, int, int]]:
    """(folder, lines before, lines after), the largest first."""
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for side, lines in enumerate((report.lines_before, report.lines_after)):
        for name, number in lines.items():
            total[name.partition("/")[0] if "/" in name else "(top)"][side] += number
    return sorted(((name, old, new) for name, (old, new) in total.items() if old), key=lambda row: -row[1])


def treemap(folders: list[tuple[str, int, int]]) -> str:
    """A treemap; each rectangle is filled from below as far as its lines are left."""
    parts = []
    for (name, old, new), (x, y, w, h) in zip(folders, squarify([row[1] for row in folders]), strict=True):
        left = h * min(new / old, 1)
        about = f"{escape(name)}: {old:,} lines, {new:,} left ({share(new, old)})"
        parts.append(
            f"<g><title>{about}</title><rect x={x:.1f} y={y:.1f} width={w:.1f} height={h:.1f} fill='{_GONE}' "
            f"stroke='#fff'/><rect x={x:.1f} y={y + h - left:.1f} width={w:.1f} height={left:.1f} "
            f"fill='{_KEPT}'/>"
        )
        if w > 8 * len(name) and h > 18:
            parts.append(f"<text x={x + 5:.1f} y={y + 15:.1f}>{escape(name)}</text>")
        parts.append("</g>")
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>{''.join(parts)}</svg>"


def squarify(sizes: list[int]) -> list[tuple[float, float, float, float]]:
    """Rectangles (x, y, width, height) whose areas are as ``sizes`` (falling), near to squares.

    Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
    """
    total = sum(sizes)
    areas = [size * WIDTH * HEIGHT / total for size in sizes] if total else []
    x, y, w, h = 0.0, 0.0, float(WIDTH), float(HEIGHT)
    found: list[tuple[float, float, float, float]] = []
    while areas:
        side = min(w, h)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        depth = sum(row) / side if side else 0
        at = 0.0
        for area in row:
            length = area / depth if depth else 0
            found.append((x, y + at, depth, length) if w >= h else (x + at, y, length, depth))
            at += length
        if w >= h:
            x, w = x + depth, max(w - depth, 0)
        else:
            y, h = y + depth, max(h - depth, 0)
    return found


def _worst(row: list[float], side: float) -> float:
    """The worst ratio of sides in a row of areas along ``side``."""
    total = sum(row)
    if not total or not side:
        return float("inf")
    return max(side * side * max(row) / total**2, total**2 / (side * side * max(min(row), 1e-9)))


def bars(folders: list[tuple[str, int, int]], most: int = 24) -> str:
    """Bars, before and after, of the largest folders."""
    shown = folders[:most]
    top = max((old for _, old, _ in shown), default=1)
    parts = []
    for number, (name, old, new) in enumerate(shown):
        y = number * 24
        scale = (WIDTH - 380) / top
        parts.append(
            f"<text x=150 y={y + 16} text-anchor=end fill=currentColor>{escape(name)}</text>"
            f"<rect x=160 y={y + 4} width={max(old * scale, 1):.1f} height=16 fill='{_GONE}'/>"
            f"<rect x=160 y={y + 4} width={new * scale:.1f} height=16 fill='{_KEPT}'/>"
            f"<text x={168 + old * scale:.1f} y={y + 16} fill=currentColor>{old:,} → {new:,}</text>"
        )
    return f"<svg viewBox='0 0 {WIDTH} {24 * len(shown)}' role=img>{''.join(parts)}</svg>"


def _boots(report: Report) -> list[str]:
    if not report.boots:
        return []
    lines = [
        (boot["name"], boot["where"], "ok" if boot["ok"] else "FAILED", boot["text"]) for boot in report.boots
    ]
    return ["<h2>Boots of the pruned build</h2>", _table(("boot", "where", "", "the guest said"), lines)]


def _surface(report: Report) -> list[str]:
    surface = report.surface
    if not surface.known:
        return []
    text = (
        f"<p>Of {surface.known} CVE identifiers whose fix can be told from {escape(surface.source)}, "
        f"{len(surface.gone)} ({share(len(surface.gone), surface.known)}) were fixed only in files that are "
        "gone, "
        f"{len(surface.partly)} in some that are gone and some that are left. "
        f"{len(surface.unknown)} more name no file and are not counted.</p>"
    )
    groups = (("gone", surface.gone), ("partly gone", surface.partly), ("left", surface.kept))
    lists = [
        _list(f"{name}: {len(cves)}", [f"{cve}: {', '.join(surface.files[cve][:4])}" for cve in cves])
        for name, cves in groups
    ]
    return ["<h2>Attack surface in history</h2>", text, *lists]


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines
    )
    return f"<table><tr>{first}</tr>{body}</table>"


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>{escape(title)} ({len(lines)})</summary><ul>{items}</ul></details>"
