"""``--balloon``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.balloon import PAGE_SIZE
from nemu.config.setting import pairs, table


class BalloonConfig(NamedTuple):
    """A virtio-balloon device that asks the guest to give ``size`` bytes back from the start."""

    size: int = 0
    reporting: bool = True  # the guest tells of memory that is free, which goes back to the host
    deflate_on_oom: bool = True  # the guest may take memory back before it kills a process
    statistics: float = 0.0  # seconds between two questions for the guest's statistics; 0: only when asked

    @classmethod
    def read(cls, value: object) -> BalloonConfig | None:
        """From ``on|off|SIZE[,reporting=on|off][,deflate_on_oom=on|off][,statistics=SECONDS]``, or a table
        with these keys and ``size``; None for ``off``."""
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value == "off":
            return None
        if isinstance(value, str):
            first, *rest = syntax.properties(value)
            value = pairs(rest) if first == "on" else {"size": first, **pairs(rest)}
        if isinstance(value, int):
            value = {"size": value}
        return cls(
            **table(
                value,
                size=_size,
                reporting=syntax.switch,
                deflate_on_oom=syntax.switch,
                statistics=syntax.seconds,
            )
        )


def _size(value: object) -> int:
    try:
        size = syntax.size(value)
    except ValueError:
        raise ValueError("must be on, off or a size such as 512M (a plain number is MiB)") from None
    if size % PAGE_SIZE:
        raise ValueError(f"size must be a multiple of {PAGE_SIZE >> 10}K")
    return size
