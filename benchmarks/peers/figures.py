"""Figures of several rounds: medians, ratios, the table for people and the JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from peers.machines import OURS

Samples = dict[str, dict[str, list[float]]]  # figure -> machine -> one value a round


def ratios(samples: Samples) -> dict[str, float]:
    """Ours / theirs by ``FIGURE_vs_MACHINE``, of the medians; a figure without both sides has none."""
    found = {}
    for figure, sides in samples.items():
        ours = sides.get(OURS)
        for name, theirs in sides.items():
            if name != OURS and ours and theirs and median(theirs):
                found[f"{figure}_vs_{name}"] = round(median(ours) / median(theirs), 4)
    return found


def to_json(samples: Samples, **more: Any) -> str:
    """Every value, the medians and the ratios."""
    medians = {
        figure: {name: median(values) for name, values in sides.items() if values}
        for figure, sides in samples.items()
    }
    document = {"ratios": ratios(samples), "medians": medians, "figures": samples, **more}
    return json.dumps(document, indent=2) + "\n"


def table(samples: Samples, about: Mapping[str, str], machines: Sequence[str]) -> str:
    """One row a figure: median (least to most) of each machine."""
    head = ["", *machines]
    rows = [
        [about[figure], *(_cell(sides.get(name, ())) for name in machines)]
        for figure, sides in samples.items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(_line(row, widths) for row in (head, *rows))


def _cell(values: Iterable[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "-"
    shown = [_number(value) for value in (median(ordered), ordered[0], ordered[-1])]
    return shown[0] if len(ordered) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 and value != int(value) else f"{value:,.0f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join((first, *rest)).rstrip()
