"""Lines of code, counted by cloc: blank lines and comments do not count.

cloc knows no Kconfig and no trace-events, and counts ``.c.inc`` files as Pascal; the total is what matters.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections import Counter

from nemu.errors import HostError
from nemu.shrink import process


def lines(root: str) -> dict[str, int]:
    """File -> code lines, for every file below ``root`` that cloc knows; of equal files only one counts."""
    if shutil.which("cloc") is None:
        raise HostError("cloc is not there: apt-get install cloc, or use --install-deps")
    argv = ["cloc", "--quiet", "--csv", "--by-file", "."]
    text = process.output(argv, cwd=root)
    found = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) >= 5 and row[4].isdigit() and row[0] != "SUM":
            found[os.path.normpath(row[1])] = int(row[4])
    return found


def version() -> str:
    """cloc's version."""
    return process.output(["cloc", "--version"]).strip()


def by_folder(counts: dict[str, int]) -> dict[str, int]:
    """Code lines by the first folder; files at the top are ``.``."""
    total: Counter[str] = Counter()
    for name, number in counts.items():
        total[name.partition("/")[0] if "/" in name else "."] += number
    return dict(total)
