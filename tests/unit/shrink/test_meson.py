"""Meson descriptions: what names a deleted file goes, and Meson's parser still accepts the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.shrink import meson


def prune(text: str, *, protected: frozenset[str] = frozenset()) -> str:
    """``text`` without what begins with "gone"."""
    new = meson.Pruner({"meson.build": text}, lambda folder, name: name.startswith("gone"), protected).run()
    if new["meson.build"]:
        meson.parse(new["meson.build"], "pruned")
    return new["meson.build"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ss.add(files('a.c', 'gone.c'))\n", "ss.add(files('a.c', ))\n"),
        ("ss.add(files('gone.c', 'a.c'))\n", "ss.add(files('a.c'))\n"),
        ("a = 1\nss.add(files('gone.c'))\n", "a = 1\n"),
        ("ss.add(when: 'X', if_true: files('gone.c'))\n", ""),
        (
            "ss.add(when: 'X', if_true: files('gone.c'), if_false: files('b.c'))\n",
            "ss.add(when: 'X', if_false: files('b.c'))\n",
        ),
        (
            "ss.add(files(\n  'a.c',\n  'gone.c', # why\n  'b.c',\n))\n",
            "ss.add(files(\n  'a.c',\n   # why\n  'b.c',\n))\n",
        ),
        ("if x\n  ss.add(files('gone.c'))\nendif\na = 1\n", "a = 1\n"),
        ("if x\n  ss.add(files('gone.c'))\nelse\n  a = 1\nendif\n", "if x\nelse\n  a = 1\nendif\n"),
        ("x = files('gone.c')\nss.add(x)\n", "x = []\nss.add(x)\n"),
        ("x = ['gone.c'] + y\n", "x = y\n"),
        ("x = y + ['gone.c']\n", "x = y\n"),
        ("t = executable('t', 'gone.c', 'a.c')\ntest('t', t)\na = 1\n", "a = 1\n"),
        ("t = executable('gone', 'a.c')\n", "t = executable('gone', 'a.c')\n"),
        ("subdir('gone')\nsubdir('here')\n", "subdir('here')\n"),
        ("d += {'a': files('gone.c'), 'b': files('b.c')}\n", "d += {'b': files('b.c')}\n"),
        ("foreach t: ['gone.a', 'b']\n  f += t\nendforeach\n", "foreach t: ['b']\n  f += t\nendforeach\n"),
        ("foreach t: names\n  ss.add(files('gone.c'))\nendforeach\na = 1\n", "a = 1\n"),
        ("p = find_program('gone.py')\ng = custom_target('g', command: [p, 'x'])\na = 1\n", "a = 1\n"),
        ("# only a comment\nss.add(files('gone.c'))\n", ""),
        ("message('gone.c')\n", "message('gone.c')\n"),
    ],
)
def test_what_is_gone_is_cut_out(before: str, after: str) -> None:
    assert prune(before) == after


def test_a_variable_that_two_branches_assign_stays() -> None:
    text = "if x\n  t = executable('t', 'gone.c')\nelse\n  t = executable('t', 'a.c')\nendif\n"
    assert prune(text) == text


def test_a_protected_variable_keeps_its_assignment() -> None:
    text = "t = executable('t', 'gone.c')\n"
    assert prune(text) == ""
    assert prune(text, protected=frozenset(("t",))) == text


def test_variables_reach_other_files() -> None:
    texts = {"meson.build": "t = executable('t', 'gone.c')\nsubdir('d')\n", "d/meson.build": "test('t', t)\n"}
    new = meson.Pruner(texts, lambda folder, name: name == "gone.c").run()
    assert new == {"meson.build": "subdir('d')\n", "d/meson.build": ""}


FILES = st.lists(st.sampled_from(["a.c", "b.c", "gone1.c", "gone2.c"]), min_size=1, max_size=5)


@given(lists=st.lists(FILES, min_size=1, max_size=4), multiline=st.booleans(), condition=st.booleans())
def test_exactly_the_literals_that_are_there_are_left(
    lists: list[list[str]], multiline: bool, condition: bool
) -> None:
    between = ",\n  " if multiline else ", "
    lines = []
    for names in lists:
        inside = between.join(f"'{name}'" for name in names)
        lines.append(
            f"ss.add({chr(39).join(['when: ', 'X', ', if_true: ']) if condition else ''}files({inside}))\n"
        )
    left = prune("".join(lines))
    for name in ("a.c", "b.c"):
        assert left.count(f"'{name}'") == sum(names.count(name) for names in lists)
    assert "gone" not in left
    assert left.count("ss.add") == sum(any(name[0] != "g" for name in names) for names in lists)
