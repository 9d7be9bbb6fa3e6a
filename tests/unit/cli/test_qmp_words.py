"""A QMP server's commands as words: typed, completed, explained."""

from __future__ import annotations

from typing import Any

import pytest

from nemu.cli.qmp_words import Words, split
from nemu.qmp.commands.control import introspect


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(introspect())


@pytest.mark.parametrize(
    ("command", "typed", "expected"),
    [
        ("balloon", ["value=12"], {"value": 12}),
        ("getfd", ["fdname=12"], {"fdname": "12"}),
        ("add-fd", ["fdset-id=1", 'opaque="x"'], {"fdset-id": 1, "opaque": '"x"'}),
        ("qmp_capabilities", ['enable=["oob"]'], {"enable": ["oob"]}),
        ("qom-list-types", ["abstract=true"], {"abstract": True}),
        (
            "query-cpu-model-expansion",
            ["type=full", "model.name=host", "model.props={}"],
            {"type": "full", "model": {"name": "host", "props": {}}},
        ),
        ("balloon", ["value=much"], {"value": "much"}),
    ],
)
def test_values_are_read_as_the_command_wants_them(
    words: Words, command: str, typed: list[str], expected: dict[str, Any]
) -> None:
    assert words.arguments(command, typed) == expected


@pytest.mark.parametrize(
    ("command", "typed", "problem"),
    [
        ("baloon", [], "no such command; did you mean balloon"),
        ("balloon", ["12"], "'12' must be KEY=VALUE"),
        ("balloon", ["=12"], "must be KEY=VALUE"),
        ("balloon", ["value=1", "value=2"], "value is given twice"),
        ("balloon", ["value=1", "value.x=2"], "value in 'value.x=2' is no object"),
    ],
)
def test_what_cannot_be_read_is_said(words: Words, command: str, typed: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        words.arguments(command, typed)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qmp", ["qmp_capabilities "]),
        ("he", ["help "]),
        ("help ball", ["balloon"]),
        ("balloon ", ["value="]),
        ("balloon value=1 ", []),
        ("query-cpu-model-expansion type=", ["type=static ", "type=full "]),
        ("query-cpu-model-expansion  type=full m", ["model="]),
        ("qom-list-types abstract=t", ["abstract=true "]),
        ("nonsense ", []),
    ],
)
def test_the_last_word_is_completed(words: Words, line: str, expected: list[str]) -> None:
    assert words.complete(line) == expected


def test_help_explains_each_argument(words: Words) -> None:
    lines = list(words.help("add-fd"))
    assert lines[0] == "add-fd [fdset-id=INT] [opaque=STRING]"
    assert len(lines) == 4
    assert len(list(words.help())) == 2 * len(words.commands)
    assert next(words.help("baloon")).startswith("no such command; did you mean balloon")


def test_quotes_keep_words_together() -> None:
    assert split("""a  b={"k": 1} c="x y" d='1 2'""") == ["a", """b={"k":""", "1}", 'c="x y"', "d='1 2'"]
    assert split("""b='{"k": 1}'""") == ["""b='{"k": 1}'"""]
