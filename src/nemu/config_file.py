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
from functools import partial
from typing import Any

from nemu import syntax
from nemu.config import Given, Setting, settings
from nemu.errors import ConfigError


def load(path: str) -> dict[str, Given]:
    """The settings in ``path`` by option name; ConfigError for what is not one or not TOML."""
    known = {setting.option: setting for setting in settings()}
    given: dict[str, Given] = {}
    for key, value in _parse(path).items():
        if key not in known:
            hint = syntax.nearest(key, list(known)) or f"; known are {', '.join(known)}"
            raise ConfigError("--config", path, f"unknown key {key}{hint}")
        label = f"{path}: {key}"
        given[key] = Given(label, located(known[key], label, value, os.path.dirname(path)))
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


def located(setting: Setting, label: str, value: Any, folder: str) -> Any:
    """``value`` with its relative paths starting at ``folder``."""
    if setting.many and not isinstance(value, list):
        value = [value]
    if not setting.paths and not setting.path_keys:
        return value
    locate = partial(_locate_keys, keys=setting.path_keys) if setting.path_keys else _locate_one
    return [locate(item, folder) for item in value] if setting.many else locate(value, folder)


def _locate_keys(value: Any, folder: str, *, keys: tuple[str, ...]) -> Any:
    """``value``, a table or ``KEY=VALUE,...``, with the paths under ``keys``."""
    if isinstance(value, dict):
        return {
            key: os.path.join(folder, item) if key in keys and isinstance(item, str) else item
            for key, item in value.items()
        }
    if not isinstance(value, str):
        return value
    parts = (part.partition("=") for part in syntax.properties(value))
    located = (
        f"{key}={os.path.join(folder, path)}" if equals and key in keys else f"{key}{equals}{path}"
        for key, equals, path in parts
    )
    return ",".join(part.replace(",", ",,") for part in located)


def _locate_one(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        located = ("path", "vhost-user")
        return {key: _locate_one(item, folder) if key in located else item for key, item in value.items()}
    if not isinstance(value, str) or not value:
        return value
    kind, equals, path = value.partition("=")
    if equals and kind in ("fd", "tcp"):  # --qmp
        return value
    if equals and kind in ("file", "socket", "vhost-user"):  # --console, --serial and --disk
        return f"{kind}={os.path.join(folder, path)}"
    return value if value in ("stdio", "null", "off") else os.path.join(folder, value)
