"""The plan: the union of what builds touched, licenses, patterns, and links to what stays."""

from __future__ import annotations

from pathlib import Path

from nemu.shrink import plan
from nemu.shrink.record import Record


def test_each_name_is_in_the_strongest_set_that_any_build_puts_it_in(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "other").symlink_to("nowhere")
    names = ["COPYING", "Makefile", "a.c", "b.c", "c.c", "d/e.c", "docs/x", "link", "other", "sub/LICENSE"]
    records = [
        Record(read=["a.c"], configured=["b.c"], seen=["c.c", "d/e.c"]),
        Record(read=["b.c", "d/e.c"], configured=["a.c", "sub/LICENSE"], seen=["a.c"]),
    ]
    made = plan.make(str(tmp_path), names, records, ["docs/*"], ["new.mak"])
    assert made.read == {"COPYING", "Makefile", "a.c", "b.c", "d/e.c", "docs/x", "link", "new.mak"}
    assert made.configured == {"sub/LICENSE"}
    assert made.seen == {"c.c"}
