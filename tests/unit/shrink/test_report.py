"""Reports: the same figures as text, JSON and a page."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.shrink import pages
from nemu.shrink.history import judge
from nemu.shrink.report import Report, Side, message, share, summary


@pytest.fixture
def report() -> Report:
    made = Report("p<q>", "", "qemu_1", "cloc 1")
    made.files_before, made.files_after = 100, 13
    made.lines_before = {"hw/a.c": 600, "hw/b.c": 200, "roms/c.c": 200}
    made.lines_after = {"hw/a.c": 120}
    made.lines_files_only = 125
    made.functions = [("hw/a.c", "dead")]
    made.before = {"x": Side(size=1000, text=800, libraries=51, devices=388)}
    made.after = {"x": Side(size=400, text=300, libraries=7, devices=59, syscalls=["read"])}
    made.surface = judge({"CVE-2020-0001": {"hw/b.c"}, "CVE-2020-0002": {"hw/a.c"}}, {"hw/a.c"}, "test")
    made.boots = [{"name": "x q35 kvm", "where": "here", "ok": True, "text": "hi", "syscalls": []}]
    return made


def test_shares_are_of_the_whole_and_without_firmware(report: Report) -> None:
    text = summary(report)
    assert "1,000  ->           120  12.0 %" in text
    assert "800  ->           120  15.0 %" in text
    assert "50.0 % gone" in text
    assert "boot x q35 kvm: ok" in text


def test_json_has_the_same_figures(report: Report) -> None:
    table = json.loads(report.to_json())
    assert table["lines_before"] == {"total": 1000, "by_folder": {"hw": 800, "roms": 200}}
    assert table["without_roms"] == {"before": 800, "after": 120}
    assert table["surface"]["gone"] == ["CVE-2020-0001"]


def test_a_commit_message_begins_with_a_short_subject(report: Report) -> None:
    first, blank, *_ = message(report).splitlines()
    assert len(first) <= 72
    assert blank == ""


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(report: Report) -> None:
    page = pages.html(report)
    assert "p&lt;q&gt;" in page
    assert "src=" not in page
    assert "href=" not in page
    assert page.count("<svg") == page.count("</svg>") == 2


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_rectangles_fill_the_treemap_by_their_size(sizes: list[int]) -> None:
    sizes.sort(reverse=True)
    rectangles = pages.squarify(sizes)
    assert len(rectangles) == len(sizes)
    whole = sum(w * h for _, _, w, h in rectangles)
    for size, (x, y, w, h) in zip(sizes, rectangles, strict=True):
        assert w * h == pytest.approx(whole * size / sum(sizes), rel=1e-6)
        assert x >= -1e-6
        assert y >= -1e-6
        assert x + w <= pages.WIDTH + 1e-3
        assert y + h <= pages.HEIGHT + 1e-3


def test_shares() -> None:
    assert (share(1, 8), share(1, 0)) == ("12.5 %", "-")
