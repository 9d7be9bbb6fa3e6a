"""Functions nobody calls: groups of them go, and what anything names stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemu.shrink import csource, functions

SOURCE = b"""\
#include "a.h"

/* What main needs. */
static int used(int x)
{
    return x + 1;
}

/**
 * Only dead() calls it.
 */
static int helper(struct thing *t, int x)
{
    if (x) {
        return 1;
    }
    return used(x);
}

type_init(dead_register)

int dead(void)
{
    return helper(0, 1); /* not main */
}

static int table_only(void)
{
    return 0;
}

static const struct ops table[] = { { table_only } };

#ifdef CONFIG_OTHER
void also_dead(void)
{
    dead();
}
#endif

NOTE(1, 2)
void attribute(const char *format, ...)
{
}

int main(void)
{
    return used(0);
}
"""
HEADER = (
    b"int dead(void);\nint used_elsewhere(int);\n\n"
    b"static inline int unused_inline(void)\n{\n    return 1;\n}\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.c").write_bytes(SOURCE)
    (tmp_path / "a.h").write_bytes(HEADER)
    (tmp_path / "list.txt").write_bytes(b"used_elsewhere\n")
    return tmp_path


def find(root: Path, live: set[str], spared: set[str] | None = None) -> functions.Removal:
    names = [path.name for path in sorted(root.iterdir())]
    return functions.find(str(root), names, live, spared or set(), names)


def test_dead_groups_go_with_comments_and_prototypes(root: Path) -> None:
    removal = find(root, {"main"})
    gone = {name for _, name in removal.functions}
    assert gone == {"helper", "dead", "table_only", "table", "also_dead", "unused_inline"}
    text = removal.texts["a.c"].decode()
    assert "Only dead() calls it" not in text
    assert "What main needs" in text
    assert "type_init(dead_register)" in text
    header = removal.texts["a.h"].decode()
    assert "dead" not in header
    assert "used_elsewhere" in header


def test_a_live_symbol_keeps_all_that_it_names(root: Path) -> None:
    assert {name for _, name in find(root, {"main", "dead"}).functions} == {
        "table_only", "table", "also_dead", "unused_inline",
    }  # fmt: skip


def test_a_spared_name_stays(root: Path) -> None:
    assert "table" not in {name for _, name in find(root, {"main"}, {"table"}).functions}


def test_a_function_below_an_attribute_on_its_own_line_is_left_alone(root: Path) -> None:
    assert "attribute" not in {name for _, name in find(root, {"main"}).functions}


def test_identifiers_in_other_files_keep_functions(root: Path) -> None:
    (root / "list.txt").write_bytes(b"dead used_elsewhere\n")
    assert "dead" not in {name for _, name in find(root, {"main"}).functions}


def test_comments_and_strings_name_nothing() -> None:
    assert csource.words(b'int a; // b\n/* c\n d */ char *e = "f \\" g"; \'h\'') == {"int", "a", "char", "e"}


def test_an_unbalanced_condition_inside_is_left_alone() -> None:
    text = b"#ifdef X\nint f(int a)\n{\n#else\nint f(void)\n{\n#endif\n    return 0;\n}\n"
    assert csource.read(text, csource.parser()).definitions == []


CALLS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=14)


@settings(max_examples=25, deadline=None)
@given(calls=CALLS)
def test_what_is_left_compiles_and_links_the_same_functions(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]]
) -> None:
    """gcc and its linker are the judges: after the removal nothing is unused, and main still links."""
    folder = tmp_path_factory.mktemp("c")
    prototypes = "".join(f"int f{number}(void);\n" for number in range(10))
    bodies = []
    for number in range(10):
        inside = "".join(
            f"    r += f{other}();\n" for one, other in calls if one == number and other != number
        )
        bodies.append(f"int f{number}(void)\n{{\n    int r = {number};\n{inside}    return r;\n}}\n")
    text = f"{prototypes}\n" + "\n".join(bodies) + "\nint main(void)\n{\n    return f0();\n}\n"
    (folder / "a.c").write_text(text)
    flags = ["-O0", "-Wall", "-Werror", "-ffunction-sections", "-Wl,--gc-sections"]
    subprocess.run(["gcc", *flags, "-o", "before", "a.c"], cwd=folder, check=True)
    live = _functions(folder / "before")
    removal = functions.find(str(folder), ["a.c"], live, set(), ["a.c"])
    (folder / "a.c").write_bytes(removal.texts.get("a.c", text.encode()))
    subprocess.run(["gcc", *flags, "-o", "after", "a.c"], cwd=folder, check=True)
    assert _functions(folder / "after") == live
    assert {name for _, name in removal.functions} == {f"f{number}" for number in range(10)} - live


def _functions(path: Path) -> set[str]:
    done = subprocess.run(["nm", "--defined-only", "-P", path], capture_output=True, text=True, check=True)
    words = [line.split() for line in done.stdout.splitlines()]
    return {word[0] for word in words if word[1] == "T" and word[0][0] in "fm"} - {"frame_dummy"}
