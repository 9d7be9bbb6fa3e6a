"""What Linux writes into an error record when it panics: the end of its log (fs/pstore).

A common platform error record (UEFI 2.10, appendix N.2) with one section: text, plain or
deflated, whose first line names the reason: "Panic#1 Part1".
"""

from __future__ import annotations

import re
import zlib

_SECTION = 200  # 128 bytes of record header, 72 of section descriptor
MAX_TEXT = 64 * 1024  # bytes of log; a deflated record could name any size
MAX_LINE = 512  # characters; it goes to the user's terminal
_LEVEL = re.compile(r"^<\d+>", re.MULTILINE)


def panic_log(record: bytes) -> list[str] | None:
    """The lines of the log, oldest first, if ``record`` tells of a panic; printable and short."""
    reason, _, log = _text(record[_SECTION:]).partition("\n")
    if not reason.startswith("Panic"):
        return None
    lines = _LEVEL.sub("", log).splitlines()
    return ["".join(c if c.isprintable() else "?" for c in line[:MAX_LINE]) for line in lines if line]


def _text(data: bytes) -> str:
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_TEXT)
    except zlib.error:
        data = data[:MAX_TEXT]  # not deflated
    return data.decode("utf-8", errors="replace")
