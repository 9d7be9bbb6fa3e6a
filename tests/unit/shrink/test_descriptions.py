"""Descriptions of a whole tree: folders that no build uses, events that nobody raises, what has to stay."""

from __future__ import annotations

from pathlib import Path

from nemu.shrink import descriptions
from nemu.shrink.descriptions import Mercy
from nemu.shrink.plan import Plan

FILES = {
    "meson.build": "events = ['.', 'hw/used', 'hw/idle']\nsubdir('hw')\nsubdir('tests')\n"
    "if false\n  x = test_lib\nendif\nexecutable('main', 'main.c', sources)\n",
    "main.c": "",
    "trace-events": "",
    "hw/meson.build": "sources = []\nsubdir('used')\nsubdir('idle')\nsubdir('emptied')\n",
    "hw/used/meson.build": "sources += files('a.c', 'b.c')\n",
    "hw/used/a.c": "",
    "hw/used/b.c": "",
    "hw/used/trace-events": "",
    "hw/idle/meson.build": "idle_names = ['c']\n"
    "foreach name : idle_names\n  sources += files(name + '.c')\nendforeach\n",
    "hw/idle/c.c": "",
    "hw/idle/trace-events": "",
    "hw/emptied/meson.build": "sources += files('d.c')\n",
    "hw/emptied/d.c": "",
    "hw/emptied/e.h": "",
    "tests/meson.build": "test_lib = static_library('t', 't.c')\n",
    "tests/t.c": "",
}  # fmt: skip
READ = frozenset(
    (
        "main.c",
        "hw/used/a.c",
        "hw/emptied/e.h",
        "trace-events",
        "hw/used/trace-events",
        "hw/idle/trace-events",
    )
)
CONFIGURED = frozenset(name for name in FILES if name.endswith("meson.build"))
PLAN = Plan(READ, CONFIGURED, frozenset(FILES) - READ - CONFIGURED)


def prune(folder: Path, mercy: Mercy | None = None) -> descriptions.Pruned:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return descriptions.prune_meson(str(folder), set(FILES), PLAN, mercy or Mercy())


def test_folders_without_a_source_go_with_all_that_names_them(tmp_path: Path) -> None:
    pruned = prune(tmp_path)
    assert pruned.gone == {
        "hw/idle/meson.build", "hw/idle/trace-events", "hw/emptied/meson.build", "tests/meson.build",
    }  # fmt: skip
    assert pruned.texts["hw/meson.build"] == "sources = []\nsubdir('used')\n"
    assert pruned.texts["hw/used/meson.build"] == "sources += files('a.c', )\n"
    top = pruned.texts["meson.build"]
    assert "events = ['.', 'hw/used', ]" in top
    assert "tests" not in top
    assert "executable('main', 'main.c', sources)" in top


def test_a_variable_that_was_missed_brings_its_folder_back(tmp_path: Path) -> None:
    pruned = prune(tmp_path, Mercy(variables={"test_lib"}))
    assert "subdir('tests')" in pruned.texts["meson.build"]
    assert "tests/meson.build" not in pruned.gone
    assert "tests/meson.build" not in pruned.texts


def test_a_description_under_mercy_stays_as_it_is(tmp_path: Path) -> None:
    pruned = prune(tmp_path, Mercy(files={"hw/used/meson.build"}))
    assert "hw/used/meson.build" not in pruned.texts
