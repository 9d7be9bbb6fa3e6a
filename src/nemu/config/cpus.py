"""``--cpus`` and ``--memory``: what the machine has at power-on, and what it can grow to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

MIB = syntax.MIB
MAX_CPUS = 255  # xAPIC ids
MIN_MEMORY = 64 * MIB
MAX_MEMORY = 1 << 51  # what 52 physical address bits reach leaves room for devices above
MAX_MEMORY_SLOTS = 64
HOTPLUG = ("cpu", "memory", "pci")
BLOCK = 128 * MIB  # what Linux can add and remove


class Cpus(NamedTuple):
    """``present`` CPUs at power-on; ``maximum`` is how many there can be."""

    present: int = 1
    maximum: int = 1


class Memory(NamedTuple):
    """``size`` bytes of RAM at power-on; ``slots`` for memory devices, and ``maximum`` bytes with them."""

    size: int = 512 * MIB
    maximum: int = 512 * MIB
    slots: int = 0


class CpusReader:
    """Reads ``N[,max=N]`` or a table with ``count`` and ``max``."""

    def __call__(self, value: object) -> Cpus:
        count = syntax.integer(1, MAX_CPUS)
        present, rest = _split(value, "count", count)
        maximum = table(rest, max=count).get("max", present)
        if maximum < present:
            raise ValueError(f"max must be at least {present}, the CPUs at power-on")
        return Cpus(present, maximum)

    def load(self, values: Mapping[str, Any]) -> Cpus:
        """The inverse of ``_asdict``.  TypeError for values of anything else."""
        return Cpus(**values)


class MemoryReader:
    """Reads ``SIZE[,max=SIZE,slots=N]`` or a table with ``size``, ``max`` and ``slots``."""

    def __call__(self, value: object) -> Memory:
        size, rest = _split(value, "size", _memory)
        given = table(rest, max=_memory, slots=syntax.integer(0, MAX_MEMORY_SLOTS))
        maximum = given.get("max", size)
        slots = given.get("slots", 0)
        if maximum < size:
            raise ValueError("max must be at least the memory at power-on")
        if (maximum > size) != bool(slots):
            raise ValueError("max and slots go together: how much can be added, in how many pieces")
        if (maximum - size) % BLOCK:
            raise ValueError(f"max must be the memory at power-on and a multiple of {BLOCK // MIB}M")
        return Memory(size, maximum, slots)

    def load(self, values: Mapping[str, Any]) -> Memory:
        """The inverse of ``_asdict``.  TypeError for values of anything else."""
        return Memory(**values)


class HotplugReader:
    """Reads ``auto``, ``none`` or kinds of HOTPLUG with commas between, or a list of these."""

    def __call__(self, value: object) -> tuple[str, ...]:
        kinds = value.split(",") if isinstance(value, str) else value
        if kinds in (["none"], ["auto"]):
            return () if kinds == ["none"] else ("auto",)
        if not isinstance(kinds, list) or not kinds or not set(kinds) <= set(HOTPLUG):
            raise ValueError(f"must be auto, none, or some of {', '.join(HOTPLUG)} with commas between")
        return tuple(kind for kind in HOTPLUG if kind in kinds)

    def load(self, values: list[str]) -> tuple[str, ...]:
        """The inverse of turning it into a list."""
        return tuple(values)


def _split(value: object, first: str, read: Callable[[object], int]) -> tuple[int, Mapping[str, object]]:
    """``A,key=B``, a number, or a table whose key ``first`` is A: what A reads as, and the rest."""
    if isinstance(value, Mapping):
        return read(value.get(first)), {key: one for key, one in value.items() if key != first}
    if not isinstance(value, str):
        return read(value), {}
    head, *rest = syntax.properties(value)
    return read(head), pairs(rest)


def _memory(value: object) -> int:
    size = syntax.size(value)
    if size < MIN_MEMORY or size > MAX_MEMORY or size % MIB:
        low, high = syntax.show_size(MIN_MEMORY), syntax.show_size(MAX_MEMORY)
        raise ValueError(f"must be {low} to {high}, in whole MiB (a plain number is MiB)")
    return size
