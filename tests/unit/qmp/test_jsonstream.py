"""A stream of JSON values, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemu.qmp.jsonstream import MAX_DEPTH, MAX_SIZE, JsonStream, StreamError, parse

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)
SPACE = st.text(" \t\r\n", max_size=3)


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    """What comes out when ``data`` comes in pieces of ``sizes``, and the rest at once."""
    stream = JsonStream()
    found: list[bytes] = []
    for size in sizes:
        found.extend(stream.feed(data[:size]))
        data = data[size:]
    return [*found, *stream.feed(data)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(SPACE, OBJECTS, st.booleans()), max_size=4), st.lists(st.integers(1, 9), max_size=60)
)
def test_every_object_comes_out_whole_whatever_the_pieces(
    sent: list[tuple[str, dict[str, Any], bool]], sizes: list[int]
) -> None:
    text = "".join(space + json.dumps(value, ensure_ascii=ascii) for space, value, ascii in sent)
    assert [parse(one) for one in split(text.encode(), sizes)] == [value for _, value, _ in sent]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 9), max_size=30))
def test_no_bytes_break_it_and_none_are_lost(data: bytes, sizes: list[int]) -> None:
    try:
        found = split(data, sizes)
    except StreamError:
        return
    assert b"".join(b"".join(found).split()) in b"".join(data.split())
    for one in found:
        try:
            parse(one)
        except (ValueError, RecursionError):
            pass


@settings(max_examples=100, deadline=None)
@given(OBJECTS, st.lists(st.integers(1, 9), max_size=30))
def test_it_finds_the_next_object_after_a_word_that_is_none(value: dict[str, Any], sizes: list[int]) -> None:
    text = f"nonsense}} {json.dumps(value)}"
    assert [*split(text.encode(), sizes)] == [b"nonsense}", json.dumps(value).encode()]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"1 2\n", [b"1", b"2"]),
        (b'{"a":"}\\"{"}{}', [b'{"a":"}\\"{"}', b"{}"]),
        (b'{"a": ]{}', [b'{"a": ]', b"{}"]),
        (b'"x y"\n', [b'"x', b'y"']),
        (b"word", []),
        (b"  \n", []),
        (b'{"a', []),
    ],
)
def test_where_a_value_ends(text: bytes, values: list[bytes]) -> None:
    assert split(text, []) == split(text, [1] * len(text)) == values


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"", b"x" * 4096), (b'{"', b"x" * 4096), (b'{"', b"\\\\" * 2048), (b"{", b" " * 4096)],
)
def test_a_value_without_an_end_is_given_up(start: bytes, more: bytes) -> None:
    stream = JsonStream()
    assert list(stream.feed(start)) == []
    for _ in range(MAX_SIZE // len(more) - 1):
        assert list(stream.feed(more)) == []
    with pytest.raises(StreamError):
        list(stream.feed(more + more))


def test_a_value_may_be_as_large_and_as_deep_as_that() -> None:
    text = b'{"a":"' + b"x" * (MAX_SIZE - 8) + b'"}'
    assert len(text) == MAX_SIZE
    assert split(text, [4096] * (MAX_SIZE // 4096)) == [text]
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert split(deep, []) == [deep]
    with pytest.raises(StreamError):
        split(b"[" + deep + b"]", [])


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"NaN", b"[Infinity]", b"\xff", b"1" * 5000, b"{'a':1}"])
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse(text)
