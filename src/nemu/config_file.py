"""Configuration files: TOML with the command line's settings as keys.

kernel = "vmlinuz"                  # relative to the folder of this file
append = "console=hvc0 root=/dev/vda ro"
memory = "2G"
cpus = 2
disk = ["root.img,readonly=on", { path = "data.img", serial = "data" }]
net = ["user"]
"""

from __future__ import annotations

import os
import re
from typing import Any

from nemu import syntax
from nemu.config import Given, Setting, settings
from nemu.errors import ConfigError

# Where a path may stand: keys of a table, which are properties in a value that is text.
_PATHS = ("path", "file", "socket", "dir")
_PATH = re.compile(r"((?:^|(?<!,),)(?:file|socket|dir)=)([^,]*)")
_NAMES = ("name=", "tag=")  # what a value without a path of its own begins with


def load(path: str) -> dict[str, Given]:
    """The settings in ``path`` by option name; ConfigError for what is not one or not TOML."""
    known = {setting.option: setting for setting in settings()}
    given: dict[str, Given] = {}
    for key, value in _parse(path).items():
        if key not in known:
            hint = syntax.nearest(key, list(known)) or f"; known are {', '.join(known)}"
            raise ConfigError("--config", path, f"unknown key {key}{hint}")
        label = f"{path}: {key}"
        given[key] = Given(label, _located(known[key], label, value, os.path.dirname(path)))
    return given


def _parse(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError("--config", path, (error.strerror or str(error)).lower()) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError("--config", path, f"is not valid TOML: {error}") from None


def _located(setting: Setting, label: str, value: Any, folder: str) -> Any:
    """``value`` with its relative paths starting at ``folder``."""
    if setting.many and not isinstance(value, list):
        value = [value]
    if not setting.paths:
        return value
    if setting.many:
        return [_locate_one(item, folder) for item in value]
    return _locate_one(value, folder)


def _locate_one(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _locate_one(item, folder) if key in _PATHS else item for key, item in value.items()}
    if not isinstance(value, str) or not value:
        return value
    located, count = _PATH.subn(lambda found: found[1] + os.path.join(folder, found[2]), value)
    if count or value.startswith(_NAMES) or value in ("stdio", "null", "off"):
        return located
    return os.path.join(folder, value)
