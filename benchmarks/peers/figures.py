"""Figures of several rounds: medians, ratios, the table for people and the JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from nemu.errors import ConfigError
from peers.machines import OURS

Samples = dict[str, dict[str, list[float]]]  # figure -> machine -> one value a round


def ratios(samples: Samples, inverse: Collection[str] = ()) -> dict[str, float]:
    """Ours / theirs by ``FIGURE_vs_MACHINE``, of the medians; a figure without both sides has none.

    Theirs / ours for the figures in ``inverse``.
    """
    found = {}
    for figure, sides in samples.items():
        for name in sides:
            above, below = (name, OURS) if figure in inverse else (OURS, name)
            if name != OURS and sides.get(above) and sides.get(below) and median(sides[below]):
                found[f"{figure}_vs_{name}"] = round(median(sides[above]) / median(sides[below]), 4)
    return found


def write(path: str, document: str) -> None:
    """Raises ConfigError."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(document)
    except OSError as error:
        raise ConfigError("--json", path, str(error.strerror)) from error


def to_json(samples: Samples, inverse: Collection[str] = (), **more: Any) -> str:
    """Every value, the medians and the ratios."""
    medians = {
        figure: {name: median(values) for name, values in sides.items() if values}
        for figure, sides in samples.items()
    }
    document = {"ratios": ratios(samples, inverse), "medians": medians, "figures": samples, **more}
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
