"""What can be known to be wrong before anything is opened, made or started.

Whatever passes here may still fail later, since files change under way; then the part that
opens them says so.  But nothing is left behind by a mistake that is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from nemu import syntax
from nemu.errors import ConfigError
from nemu.validate import paths

if TYPE_CHECKING:
    from nemu.config import MachineConfig, RunOptions, Setting
    from nemu.config.chardev import ChardevConfig

_NEEDS_COMMAND = "needs a command after --"
MAX_DEVICES = 31  # functions 0 of bus 0, less the host bridge
# (field of MachineConfig, module here whose ``check`` takes its value)
KINDS = (
    ("disks", "disks"),
    ("nets", "nets"),
    ("filesystems", "filesystems"),
    ("ports", "ports"),
    ("pmems", "pmems"),
    ("cloud_init", "cloud_init"),
    ("vhost_users", "vhost_users"),
    ("vsock", "vsock"),
)


def validate(config: MachineConfig, options: RunOptions) -> None:
    """Raise ConfigError for the first thing in ``config`` or ``options`` that cannot work."""
    _check_command(config)
    _check_boot(config)
    _check_count(config)
    _check_balloon(config)
    for field, module in KINDS:
        if value := getattr(config, field):
            import_module(f"nemu.validate.{module}").check(value)
    _check_chardev("--console", config.console)
    _check_chardev("--serial", config.serial)
    _check_shared(config)
    if options.qmp:
        import_module("nemu.validate.qmp").check(options.qmp)
    if options.report:
        paths.output("--report", options.report)


def _check_command(config: MachineConfig) -> None:
    if config.command:
        stdio = [config.serial, *(port.chardev for port in config.ports)]
        if any(chardev.kind == "stdio" for chardev in stdio):
            option = "--serial" if config.serial.kind == "stdio" else "--port"
            raise ConfigError(option, "stdio", "standard input and output are the command's")
        paths.directory("--root", config.root, config.root)
        return
    for option, value in (("root", config.root), ("cwd", config.directory), ("env", config.env)):
        if value:
            raise ConfigError(f"--{option}", str(value if option != "env" else value[0]), _NEEDS_COMMAND)
    if config.rw:
        raise ConfigError("--rw", "", _NEEDS_COMMAND)


def _check_boot(config: MachineConfig) -> None:
    if not config.kernel:
        raise ConfigError("--kernel", "", "is needed with --initrd")
    paths.readable("--kernel", config.kernel)
    if config.initrd:
        paths.readable("--initrd", config.initrd)
    from nemu.boot import loader

    loader.check(config.kernel, config.initrd, config.append, config.memory.size)


def _check_count(config: MachineConfig) -> None:
    counts: dict[str, int] = {}
    for item in fields(config):
        how: Setting = item.metadata["setting"]
        if how.device:
            value = getattr(config, item.name)
            counts[f"--{how.option}"] = _slots(value) if how.many else bool(value)
    counts["--port"] = bool(config.ports) + bool(config.command)  # one device for all
    count = 1 + sum(counts.values())  # the console
    if count > MAX_DEVICES:
        most = max(counts, key=lambda option: counts[option])
        raise ConfigError(most, "", f"{count} devices do not fit the bus: at most {MAX_DEVICES} in all")


def _check_shared(config: MachineConfig) -> None:
    """Standard input and output, a file or a socket serve one of them."""
    serial = config.serial
    if serial.kind == config.console.kind == "stdio":
        raise ConfigError("--serial", "stdio", "the console has stdio already; add --console null")
    if serial.path and serial == config.console:
        raise ConfigError("--serial", f"file={serial.path}", "the console writes to this file already")
    for port in config.ports:
        for name, other in (("console", config.console), ("serial port", serial)):
            if port.chardev == other:
                remedy = "; add --console null" if other is config.console else ""
                raise ConfigError(
                    "--port", f"name={port.name}", f"the {name} has {_place(other)} already{remedy}"
                )


def _place(chardev: ChardevConfig) -> str:
    return f"{chardev.kind}={chardev.path}" if chardev.path else chardev.kind


def _check_balloon(config: MachineConfig) -> None:
    if config.balloon and config.balloon.size >= config.memory.size:
        problem = f"must be less than the {syntax.show_size(config.memory.size)} of --memory"
        raise ConfigError("--balloon", syntax.show_size(config.balloon.size), problem)


def _slots(devices: Sequence[object]) -> int:
    """How many places on the bus ``devices`` take: SCSI disks have one together, their controller's."""
    scsi = len([device for device in devices if getattr(device, "bus", "") == "scsi"])
    return len(devices) - max(scsi - 1, 0)


def _check_chardev(option: str, chardev: ChardevConfig) -> None:
    if chardev.kind == "file":
        paths.output(option, chardev.path)
    if chardev.kind == "socket":
        paths.socket(option, chardev.path)
