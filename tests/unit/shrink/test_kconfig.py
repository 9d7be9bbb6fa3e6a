"""Kconfig: what is off everywhere goes, and what is left means the same."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nemu.shrink import kconfig


def tree(folder: Path, files: dict[str, str]) -> str:
    """A small source tree with ``files``."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def closure(root: str, chosen: set[str]) -> set[str]:
    """The symbols that are on when ``chosen`` are: an evaluator of its own, for ``select`` only."""
    selects: dict[str, set[str]] = {}
    for name in kconfig.files(root):
        for entry in kconfig.parse(Path(root, name).read_text()):
            words = [line.split() for line in entry.lines[1:]]
            selects[entry.name] = {line[1] for line in words if line[:1] == ["select"] and len(line) == 2}
    on = set(chosen)
    while more := {name for one in on for name in selects.get(one, ())} - on:
        on |= more
    return on


FILES = {
    "Kconfig": "source Kconfig.host\nsource hw/Kconfig\n",
    "Kconfig.host": "config LINUX\n    bool\n\nconfig FUZZ\n    bool\n    select GONE\n",
    "hw/Kconfig": "# devices\nsource net/Kconfig\nsource old/Kconfig\n\nconfig PCI\n    bool\n",
    "hw/net/Kconfig": (
        "config NET\n    bool\n    default y if PCI\n    depends on PCI || ISA\n    select PCI\n"
        "    imply GONE\n"
        "    select GONE if FANCY\n\nconfig OTHER\n    bool\n    select NET\n"
    ),
    "hw/old/Kconfig": "config GONE\n    bool\n\nconfig ISA\n    bool\n    select GONE\n",
}


def test_entries_that_are_off_go_and_expressions_keep_bare_ones(tmp_path: Path) -> None:
    root = tree(tmp_path, FILES)
    gone = kconfig.prune(root, {"NET", "PCI", "LINUX"}, {"Kconfig.host"})
    assert gone == set()
    net = (tmp_path / "hw/net/Kconfig").read_text()
    assert "depends on PCI || ISA" in net
    assert "GONE" not in net
    assert "OTHER" not in net
    assert (tmp_path / "hw/old/Kconfig").read_text() == "config ISA\n    bool\n\n"
    assert "GONE" not in (tmp_path / "Kconfig.host").read_text()


def test_a_file_without_any_entry_left_goes_with_the_line_that_reads_it(tmp_path: Path) -> None:
    files = dict(FILES)
    files["hw/net/Kconfig"] = "config NET\n    bool\n    select PCI\n"
    root = tree(tmp_path, files)
    assert kconfig.prune(root, {"NET", "PCI"}, {"Kconfig.host"}) == {"hw/old/Kconfig"}
    assert "old" not in (tmp_path / "hw/Kconfig").read_text()
    assert not (tmp_path / "hw/old/Kconfig").exists()


def test_symbols_that_the_profile_switches_off_stay_defined(tmp_path: Path) -> None:
    root = tree(tmp_path, FILES)
    kconfig.prune(root, {"PCI"}, {"Kconfig.host", "OTHER"})
    assert "OTHER" in kconfig.symbols(root)


NAMES = [f"S{number}" for number in range(8)]
GRAPHS = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES), max_size=3), min_size=1)


@settings(max_examples=60, deadline=None)
@given(graph=GRAPHS, chosen=st.sets(st.sampled_from(NAMES), max_size=3))
def test_what_is_on_stays_on_for_any_graph_of_selects(
    tmp_path_factory: object, graph: dict[str, set[str]], chosen: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("tree")  # type: ignore[attr-defined]
    lines = []
    for name in NAMES:
        lines += [
            f"config {name}",
            "    bool",
            *(f"    select {other}" for other in sorted(graph.get(name, ()))),
        ]
    root = tree(folder, {"Kconfig": "\n".join(lines) + "\n"})
    before = closure(root, chosen)
    kconfig.prune(root, before, set())
    assert closure(root, chosen) == before
    assert kconfig.symbols(root) == before
