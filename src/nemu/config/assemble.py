"""Values as somebody wrote them -> the machine and the options of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from nemu.config.machine import MachineConfig
from nemu.config.run import RunOptions
from nemu.config.setting import Given, Setting
from nemu.errors import ConfigError


def settings() -> Iterator[Setting]:
    """Every setting, in the order in which help lists them."""
    for cls in (MachineConfig, RunOptions):
        for item in fields(cls):
            yield item.metadata["setting"]


def assemble(given: Mapping[str, Given]) -> tuple[MachineConfig, RunOptions]:
    """The machine and the options out of values by option name (a list of values where ``many``).

    Raises ConfigError for the first value that cannot be read.
    """
    return MachineConfig(**_read(MachineConfig, given)), RunOptions(**_read(RunOptions, given))


def _read(cls: type[MachineConfig] | type[RunOptions], given: Mapping[str, Given]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(cls):
        how: Setting = item.metadata["setting"]
        if how.option not in given:
            continue
        label, value = given[how.option]
        if how.many:
            values[item.name] = tuple(_read_one(how, label, one) for one in value)
        else:
            values[item.name] = _read_one(how, label, value)
    return values


def _read_one(how: Setting, label: str, value: object) -> Any:
    try:
        return how.read(value)
    except ValueError as error:
        shown = str(value) if len(str(value)) <= 80 else f"{str(value)[:77]}..."
        raise ConfigError(label, shown or "''", str(error)) from None
