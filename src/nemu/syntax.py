"""How settings are written: the same words on the command line and in a configuration file.

Each reader takes one value (text, or what TOML made of it) and gives the setting or raises
ValueError with a text that completes the sentence "--memory 0: ...".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

MIB = 1 << 20
FD_MAX = (1 << 20) - 1  # the largest descriptor that somebody may hand over
NAME_MAX = 50  # characters: with its directory a socket's path must stay below 108 bytes
_UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}


def size(value: object) -> int:
    """Bytes of ``512M``, ``1.5G``, ``2GiB`` or ``1T``; a bare number counts MiB, as QEMU's users expect."""
    problem = "must be a size such as 512M, 2G or 1T (a plain number is MiB)"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(problem)
    text = str(value).strip().upper().removesuffix("IB")
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("K", "M", "G", "T") else (text, "")
    whole, point, fraction = number.partition(".")
    if not _digits(whole) or (point and not _digits(fraction)) or len(number) > 20:
        raise ValueError(problem)
    scale: int = 10 ** len(fraction)
    scaled = int(whole + fraction) * _UNITS[unit]
    if scaled % scale:
        raise ValueError("must be a whole number of bytes")
    return scaled // scale


def show_size(size: int) -> str:
    """``size`` bytes in the largest unit that leaves a whole number."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size} bytes"


def integer(low: int, high: int) -> Callable[[object], int]:
    """A reader of decimal integers from ``low`` to ``high``."""

    def read(value: object) -> int:
        if isinstance(value, str) and _digits(value) and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return read


def seconds(value: object) -> float:
    """A finite, non-negative number of seconds."""
    problem = "must be a number of seconds, 0 for no limit"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(problem)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(problem) from None
    if not isfinite(number) or number < 0:
        raise ValueError(problem)
    return number


def switch(value: object) -> bool:
    """``on`` or ``off``; true and false in a file."""
    if isinstance(value, bool):
        return value
    if value not in ("on", "off"):
        raise ValueError("must be on or off")
    return value == "on"


def text(value: object) -> str:
    """Any text without a NUL byte (no path, name or kernel command line may have one)."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    if "\0" in value:
        raise ValueError("must not contain a NUL byte")
    return value


def path(value: object) -> str:
    """A path, not empty."""
    if not text(value):
        raise ValueError("must be a path")
    return text(value)


def machine_name(value: object) -> str:
    """A name that is good for a file: letters, digits, ``.``, ``_`` and ``-``."""
    name = text(value)
    plain = name.replace(".", "").replace("_", "").replace("-", "")
    if not plain.isascii() or not plain.isalnum() or not name[0].isalnum() or len(name) > NAME_MAX:
        raise ValueError(
            f"must be 1 to {NAME_MAX} letters, digits, '.', '_' or '-', and begin with a letter or digit"
        )
    return name


def choice(*words: str) -> Callable[[object], str]:
    """A reader of one word out of ``words``."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {either(words)}")
        return str(value)

    return read


def mac_address(value: object) -> str:
    """A unicast Ethernet address in lower case, ``52:54:00:12:34:56``."""
    parts = text(value).lower().split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
        raise ValueError("mac must be six hexadecimal bytes such as 52:54:00:12:34:56")
    if int(parts[0], 16) & 1 or parts == ["00"] * 6:
        raise ValueError("mac must be a unicast address (an even first byte), not all zero")
    return ":".join(parts)


def properties(value: str) -> list[str]:
    """The parts of ``PATH,readonly=on``.  A comma inside a part is written twice, as QEMU does it."""
    return [part.replace("\0", ",") for part in text(value).replace(",,", "\0").split(",")]


def either(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def nearest(word: str, words: Sequence[str]) -> str:
    """``; did you mean X?`` when one of ``words`` begins with ``word`` or is close to it, else ""."""
    from difflib import get_close_matches  # 2 ms that only a mistake has to pay

    begun = [one for one in words if word.lstrip("-") and one.startswith(word)]
    close = begun or get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
