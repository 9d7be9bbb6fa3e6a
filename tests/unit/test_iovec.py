"""Scatter-gather lists against plain bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemu import iovec

PARTS = st.lists(st.binary(min_size=1, max_size=6), max_size=5)


def views(parts: list[bytes]) -> list[memoryview]:
    return [memoryview(bytearray(part)) for part in parts]


@given(parts=PARTS, count=st.integers(0, 40))
def test_parts_of_a_list_are_those_of_its_bytes(parts: list[bytes], count: int) -> None:
    whole = b"".join(parts)
    assert iovec.size(views(parts)) == len(whole)
    assert b"".join(iovec.take(views(parts), count)) == whole[:count]
    assert b"".join(iovec.skip(views(parts), count)) == whole[count:]
    assert iovec.gather(views(parts), count) == whole[:count]
    if parts:
        assert b"".join(iovec.but_last(views(parts))) == whole[:-1]


@given(parts=PARTS, count=st.integers(0, 40))
def test_no_part_is_empty(parts: list[bytes], count: int) -> None:
    """The kernel takes empty buffers, but they count towards its limit."""
    given_views = views(parts)
    lists = [iovec.take(given_views, count), iovec.skip(given_views, count)]
    lists += [iovec.but_last(given_views)] if parts else []
    assert all(len(view) for part in lists for view in part)


@given(parts=PARTS, data=st.binary(max_size=40))
def test_data_is_scattered_from_the_start_as_far_as_there_is_room(parts: list[bytes], data: bytes) -> None:
    room = views(parts)
    whole = b"".join(parts)
    assert iovec.scatter(room, data) == min(len(data), len(whole))
    assert b"".join(room) == data[: len(whole)] + whole[len(data) :]
