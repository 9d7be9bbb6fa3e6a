"""What can be known to be wrong before anything is opened, made or started.

Whatever passes here may still fail later, since files change under way; then the part that
opens them says so.  But nothing is left behind by a mistake that is found here.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from nemu.errors import ConfigError
from nemu.validate import paths

if TYPE_CHECKING:
    from nemu.config import MachineConfig, RunOptions, Setting
    from nemu.config.chardev import ChardevConfig

MAX_DEVICES = 31  # functions 0 of bus 0, less the host bridge
# (field of MachineConfig, module here whose ``check`` takes its value)
KINDS = (
    ("disks", "disks"),
    ("nets", "nets"),
    ("vhost_users", "vhost_users"),
    ("vsock", "vsock"),
)


def validate(config: MachineConfig, options: RunOptions) -> None:
    """Raise ConfigError for the first thing in ``config`` or ``options`` that cannot work."""
    _check_boot(config)
    _check_count(config)
    for field, module in KINDS:
        if value := getattr(config, field):
            import_module(f"nemu.validate.{module}").check(value)
    _check_chardev("--console", config.console)
    _check_chardev("--serial", config.serial)
    if config.serial.kind == config.console.kind == "stdio":
        raise ConfigError("--serial", "stdio", "the console has stdio already; add --console null")
    if config.serial.path and config.serial == config.console:
        raise ConfigError("--serial", f"file={config.serial.path}", "the console writes to this file already")
    if options.report:
        paths.output("--report", options.report)


def _check_boot(config: MachineConfig) -> None:
    if not config.kernel:
        raise ConfigError("--kernel", "", "is needed with --initrd")
    paths.readable("--kernel", config.kernel)
    if config.initrd:
        paths.readable("--initrd", config.initrd)
    from nemu.boot import loader

    loader.check(config.kernel, config.initrd, config.append, config.memory)


def _check_count(config: MachineConfig) -> None:
    counts: dict[str, int] = {}
    for item in fields(config):
        how: Setting = item.metadata["setting"]
        if how.device:
            value = getattr(config, item.name)
            counts[f"--{how.option}"] = len(value) if how.many else bool(value)
    count = 1 + sum(counts.values())  # the console
    if count > MAX_DEVICES:
        most = max(counts, key=lambda option: counts[option])
        raise ConfigError(most, "", f"{count} devices do not fit the bus: at most {MAX_DEVICES} in all")


def _check_chardev(option: str, chardev: ChardevConfig) -> None:
    if chardev.kind == "file":
        paths.output(option, chardev.path)
    if chardev.kind == "socket":
        paths.socket(option, chardev.path)
