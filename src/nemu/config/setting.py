"""What one setting is, and how the compound ones (``PATH,key=value``) are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, NamedTuple

from nemu import syntax


class Setting(NamedTuple):
    """How one field is set.  ``read`` raises ValueError with what would be right."""

    option: str  # without dashes; the key in a configuration file
    read: Callable[[Any], Any]
    metavar: str  # "a|b": the words to choose from
    help: str
    many: bool = False
    paths: bool = False  # names files: relative ones in a configuration file start at its folder
    path_keys: tuple[str, ...] = ()  # the same for those parts KEY=PATH
    words: bool = False  # what follows "--" on the command line
    flag: bool = False  # given without a value it is on
    device: bool = False  # each of them takes a slot of the PCI bus


class Given(NamedTuple):
    """A value as somebody wrote it; ``label`` says where: ``--memory`` or ``vm.toml: memory``."""

    label: str
    value: Any


def setting(default: Any, how: Setting) -> Any:
    """A dataclass field with ``default`` that is set as ``how`` says."""
    return field(default=default, metadata={"setting": how})


class Kind:
    """A class of ``nemu.config``, by the name of its module, imported only when a machine has one.

    ``Kind("disk", "DiskConfig")`` calls ``DiskConfig.read``; ``load`` makes one out of JSON values.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, value: object) -> Any:
        return self._class().read(value)

    def load(self, values: Mapping[str, Any]) -> Any:
        """The inverse of ``_asdict``, by ``load`` of a class that has it.  TypeError for other values."""
        kind = self._class()
        return kind.load(values) if hasattr(kind, "load") else kind(**values)

    def _class(self) -> Any:
        from importlib import import_module

        return getattr(import_module(f"nemu.config.{self._module}"), self._name)


def pairs(parts: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` parts as a mapping; ValueError for a part that is none, and for a key given twice."""
    table: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' must be KEY=VALUE")
        if key in table:
            raise ValueError(f"{key} is given twice")
        table[key] = value
    return table


def table(value: object, **readers: Callable[[Any], Any]) -> dict[str, Any]:
    """``value``, a mapping with some of the keys of ``readers``, each read by its reader."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be text or a table with {syntax.either(list(readers))}")
    read: dict[str, Any] = {}
    for key, one in value.items():
        if key not in readers:
            hint = syntax.nearest(key, list(readers)) or f"; known are {', '.join(readers)}"
            raise ValueError(f"unknown key {key}{hint}")
        try:
            read[key] = readers[key](one)
        except ValueError as error:
            raise ValueError(str(error) if key in str(error) else f"{key} {error}") from None
    if "path" in readers and "path" not in read:
        raise ValueError("needs a path")
    return read
