"""The port by which the guest of a command and nemu tell each other how it goes: lines of text, both ways.

Threat note: the guest's program may write here what it likes.  A line has at most MAX_LINE bytes, more of
it is dropped; what the line means is for who gets it to check.
"""

from __future__ import annotations

from collections.abc import Callable

from nemu.backends.chardev import Chardev

MAX_LINE = 512  # bytes
MAX_WAITING = 4096  # bytes to a guest that does not listen


class CommandControl(Chardev):
    """``said`` is called with each line of the guest's."""

    def __init__(self, said: Callable[[str], None]) -> None:
        super().__init__()
        self._said = said
        self._line = bytearray()
        self._waiting = b""

    def tell(self, word: str) -> None:
        """One line for the guest."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting += f"{word}\n".encode()
            self._readable()

    def read(self, limit: int) -> bytes:
        data, self._waiting = self._waiting[:limit], self._waiting[limit:]
        return data

    def write(self, data: memoryview) -> int:
        first, *others = bytes(data).split(b"\n")
        self._add(first)
        for piece in others:
            line, self._line = self._line, bytearray()
            self._said(line.decode(errors="replace"))
            self._add(piece)
        return len(data)

    def _add(self, piece: bytes) -> None:
        self._line += piece[: MAX_LINE - len(self._line)]
