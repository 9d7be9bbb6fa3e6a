"""Scatter-gather lists: a list of memoryviews that stand for one run of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Iovec = list[memoryview]


def size(views: Iterable[memoryview]) -> int:
    """Bytes in ``views``."""
    return sum(map(len, views))


def take(views: Sequence[memoryview], count: int) -> Iovec:
    """The first ``count`` bytes (all, when there are fewer)."""
    result: Iovec = []
    for view in views:
        if count <= 0:
            break
        result.append(view if len(view) <= count else view[:count])
        count -= len(view)
    return result


def skip(views: Sequence[memoryview], count: int) -> Iovec:
    """What lies behind the first ``count`` bytes."""
    for number, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[number + 1 :]] if count else list(views[number:])
        count -= len(view)
    return []


def but_last(views: Sequence[memoryview]) -> Iovec:
    """All but the last byte of what is not empty."""
    *rest, last = views
    return [*rest, last[:-1]] if len(last) > 1 else rest


def gather(views: Sequence[memoryview], limit: int) -> bytes:
    """A copy of the first ``limit`` bytes; callers bound what a guest can make them copy."""
    if views and len(views[0]) >= limit:  # as a rule
        return bytes(views[0][:limit])
    return b"".join(take(views, limit))


def scatter(views: Sequence[memoryview], data: bytes | bytearray | memoryview) -> int:
    """Store ``data`` from the start of ``views``; the number of bytes that fit."""
    source = memoryview(data)
    offset = 0
    for view in views:
        if offset >= len(source):
            break
        part = source[offset : offset + len(view)]
        view[: len(part)] = part
        offset += len(part)
    return offset
