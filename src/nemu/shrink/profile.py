"""What to keep: a profile names the configurations of a C project that have to build, and what they offer.

A profile is a TOML file.  ``kind`` says how its builds are made: ``qemu`` knows QEMU's configure, Kconfig and
Meson; ``command`` is any project with a build command.  A ``[level.NAME]`` table changes the profile when
that level is asked for: its tables are merged into the profile's, other values replace them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nemu import syntax
from nemu.errors import ConfigError

OPTION = "PROFILE"
SHIPPED = os.path.join(os.path.dirname(__file__), "profiles")


def words(value: object) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of texts")
    return tuple(syntax.text(word) for word in value)


def switches(value: object) -> dict[str, bool]:
    """A table of ``NAME = true`` and ``NAME = false``."""
    if not isinstance(value, dict) or not all(isinstance(word, bool) for word in value.values()):
        raise ValueError("must be a table of names that are true or false")
    return dict(value)


def texts(value: object) -> dict[str, str]:
    """A table of texts."""
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise ValueError("must be a table of texts")
    return dict(value)


def _setting(read: Callable[[object], Any], default: Any = "") -> Any:
    factory: Any = {"default_factory": type(default)} if isinstance(default, dict) else {"default": default}
    return field(metadata={"read": read}, **factory)


@dataclass(frozen=True)
class Boot:
    """One boot of a QEMU that was built: it must reach the small guest's shell and run a command there."""

    machine: str = _setting(syntax.text)
    accel: str = _setting(syntax.choice("kvm", "tcg"), "kvm")
    cpu: str = _setting(syntax.text)
    arguments: tuple[str, ...] = _setting(words, ())
    expect: str = _setting(syntax.text)


@dataclass(frozen=True)
class Build:
    """One configuration.

    ``config``, ``target``, ``machines``, ``devices``, ``boot`` belong to the kind qemu; ``commands``,
    ``directory``, ``products`` and ``tests`` to the kind command.  ``baseline``: the distribution's package
    with the same program, to compare with.
    """

    name: str = ""
    architecture: str = _setting(syntax.choice("amd64", "arm64"), "amd64")
    libraries: tuple[str, ...] = _setting(words, ())
    configure: tuple[str, ...] = _setting(words, ())
    target: str = _setting(syntax.text)
    config: dict[str, bool] = _setting(switches, {})
    machines: tuple[str, ...] = _setting(words, ())
    devices: tuple[str, ...] = _setting(words, ())
    commands: tuple[str, ...] = _setting(words, ())
    directory: str = _setting(syntax.path, ".")
    products: tuple[str, ...] = _setting(words, ())
    tests: tuple[str, ...] = _setting(words, ())
    environment: dict[str, str] = _setting(texts, {})
    baseline: str = _setting(syntax.text)
    boot: tuple[Boot, ...] = ()


@dataclass(frozen=True)
class Profile:
    """A whole profile at one level.

    ``keep``: patterns of files that stay; ``spare``: functions that stay, as macros put their names together.
    """

    name: str = ""
    level: str = ""
    about: str = _setting(syntax.text)
    kind: str = _setting(syntax.choice("qemu", "command"), "command")
    package: str = _setting(syntax.text)
    patches: tuple[str, ...] = _setting(words, ())
    packages: tuple[str, ...] = _setting(words, ())
    configure: tuple[str, ...] = _setting(words, ())
    keep: tuple[str, ...] = _setting(words, ())
    spare: tuple[str, ...] = _setting(words, ())
    functions: bool = _setting(syntax.switch, False)
    builds: tuple[Build, ...] = ()
    folder: str = ""


def shipped() -> list[str]:
    """The names of the profiles that come with nemu."""
    return sorted(name.removesuffix(".toml") for name in os.listdir(SHIPPED) if name.endswith(".toml"))


def load(name: str, level: str = "") -> Profile:
    """The profile in the file ``name``, or the shipped one of this name.  Raises ConfigError."""
    path = name
    if not name.endswith(".toml") and not os.path.exists(name):
        if name not in shipped():
            close = syntax.nearest(name, shipped()) or f"; must be a TOML file or {syntax.either(shipped())}"
            raise ConfigError(OPTION, name, f"no such profile{close}")
        path = os.path.join(SHIPPED, f"{name}.toml")
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(OPTION, name, (error.strerror or str(error)).lower()) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(OPTION, name, f"not TOML: {error}") from None
    return parse(table, os.path.basename(path).removesuffix(".toml"), os.path.dirname(path), level)


def parse(table: Mapping[str, Any], name: str, folder: str, level: str = "") -> Profile:
    """The profile that ``table`` describes, at ``level``."""
    merged = _at_level(dict(table), level)
    builds = merged.pop("build", {})
    if not isinstance(builds, dict) or not builds:
        raise ConfigError(f"{name}: build", "", "at least one [build.NAME] table is needed")
    made = tuple(_build(f"{name}: build.{key}", key, value) for key, value in builds.items())
    profile = Profile(
        name=name, level=level, builds=made, folder=folder, **_read(Profile, name, merged, ("build", "level"))
    )
    _check(profile)
    return profile


def describe(name: str) -> tuple[str, list[str]]:
    """What the shipped profile ``name`` is for, and its levels."""
    with open(os.path.join(SHIPPED, f"{name}.toml"), "rb") as file:
        table = tomllib.load(file)
    return str(table["about"]), list(table.get("level", {}))


def _at_level(table: dict[str, Any], level: str) -> dict[str, Any]:
    found = table.pop("level", {})
    if not level:
        return table
    if level not in found:
        close = syntax.nearest(level, list(found))
        known = f"; must be {syntax.either(list(found))}" if found else "; this profile has no levels"
        raise ConfigError("--level", level, f"unknown{close or known}")
    return _merge(table, found[level])


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        both = isinstance(mine, dict) and isinstance(value, dict)
        merged[key] = _merge(mine, value) if both and isinstance(mine, dict) else value
    return merged


def _build(where: str, name: str, table: object) -> Build:
    if not isinstance(table, dict):
        raise ConfigError(where, "", "must be a table")
    rest = dict(table)
    boots = rest.pop("boot", [])
    lose, gain = (set(_value(f"{where}.{key}", words, rest.pop(key, []))) for key in ("lose", "gain"))
    given = _read(Build, where, rest, ("boot", "lose", "gain"))
    if unknown := lose - set(given.get("devices", ())):
        raise ConfigError(f"{where}.lose", sorted(unknown)[0], "is not among the devices")
    devices = tuple(sorted((set(given.pop("devices", ())) - lose) | gain))
    boot = tuple(Boot(**_read(Boot, f"{where}.boot", one, ())) for one in boots)
    return Build(name=name, boot=boot, devices=devices, **given)


def _read(kind: type, where: str, table: Mapping[str, Any], more: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``table`` for the settings of the dataclass ``kind``."""
    readers = {one.name: one.metadata["read"] for one in fields(kind) if "read" in one.metadata}
    for key in table:
        if key not in readers:
            close = syntax.nearest(key, [*readers, *more])
            raise ConfigError(f"{where}: {key}", "", f"no such setting{close}")
    return {key: _value(f"{where}: {key}", readers[key], value) for key, value in table.items()}


def _value(where: str, read: Callable[[object], Any], value: object) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ConfigError(where, value if isinstance(value, str | int) else "", str(error)) from None


_OF_KIND = {
    "qemu": ("target", "config", "machines", "devices", "boot"),
    "command": ("commands", "products", "tests"),
}


def _check(profile: Profile) -> None:
    needed = {"qemu": "target", "command": "commands"}[profile.kind]
    for build in profile.builds:
        where = f"{profile.name}: build.{build.name}"
        if not getattr(build, needed):
            raise ConfigError(f"{where}.{needed}", "", f"is needed in a profile of the kind {profile.kind}")
        for kind, names in _OF_KIND.items():
            for name in names:
                if kind != profile.kind and getattr(build, name):
                    raise ConfigError(f"{where}.{name}", "", f"belongs to the kind {kind}")
        if profile.kind == "command" and not build.products:
            raise ConfigError(f"{where}.products", "", "at least one file that the build makes is needed")
        if os.path.isabs(build.directory) or ".." in build.directory.split("/"):
            raise ConfigError(f"{where}.directory", build.directory, "must lie in the tree")
