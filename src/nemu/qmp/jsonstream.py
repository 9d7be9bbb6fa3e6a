"""A stream of bytes into JSON values (RFC 8259), with nothing but white space needed between two of them.

Threat: a client sends values without end, brackets without end, or text that is no JSON.  What is kept is
bounded; a value that is too large or too deep ends the stream, and text that is no JSON is a value that
``parse`` refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_SIZE = 1 << 20  # bytes of one value
MAX_DEPTH = 64

_SPACE = re.compile(rb"[ \t\r\n]*")
_WORD = re.compile(rb"[^ \t\r\n{\[]*")  # at the top: whatever stands there instead of an object
_PLAIN = re.compile(rb'[^"{}\[\]]*')
# Up to the closing quote, or to a backslash at the end of the input.
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class StreamError(Exception):
    """The stream cannot go on; the text says why."""


class JsonStream:
    """Feed it what came in; it gives the bytes of each value that is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises StreamError; what it gave until then is good."""
        self._buffer += data
        while (end := self._end_of_value()) is not None:
            value = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._scanned = 0
            yield value
        if len(self._buffer) > MAX_SIZE:
            raise StreamError(f"JSON value of more than {MAX_SIZE} bytes")

    def _end_of_value(self) -> int | None:
        """Where the first value in the buffer ends, None until all of it is there."""
        buffer = self._buffer
        if not self._depth:
            del buffer[: _matched(_SPACE, buffer)]
            if not buffer:
                return None
            if buffer[0] not in b"{[":
                self._scanned = _matched(_WORD, buffer, self._scanned)
                return self._scanned if self._scanned < len(buffer) else None
        while True:
            pattern = _IN_STRING if self._in_string else _PLAIN
            self._scanned = _matched(pattern, buffer, self._scanned)
            token = bytes(buffer[self._scanned : self._scanned + 1])
            if not token or token == b"\\":
                return None
            self._scanned += 1
            if self._take(token):
                return self._scanned

    def _take(self, token: bytes) -> bool:
        """Count ``token``, a quote or a bracket; True when it ends the value."""
        if token == b'"':
            self._in_string = not self._in_string
        elif token in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise StreamError(f"JSON value with more than {MAX_DEPTH} levels")
        else:
            self._depth -= 1
            return self._depth == 0
        return False


def _matched(pattern: re.Pattern[bytes], buffer: bytearray, start: int = 0) -> int:
    """Where what ``pattern`` matches from ``start`` on ends."""
    found = pattern.match(buffer, start)
    assert found is not None
    end = found.end()
    del found  # it holds the buffer, which could not shrink
    return end


def parse(text: bytes) -> Any:
    """The value of ``text``; ValueError for what is not JSON, or has a key twice."""
    return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_refuse)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"invalid keyword '{name}'")
