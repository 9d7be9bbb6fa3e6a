"""What can be known to be wrong before anything is opened, made or started.

Whatever passes here may still fail later, since files change under way; then the part that
opens them says so.  But nothing is left behind by a mistake that is found here.
"""

from __future__ import annotations

import os
import stat

from nemu.config import ChardevConfig, DiskConfig, MachineConfig, NetConfig, RunOptions
from nemu.errors import ConfigError

SECTOR = 512  # bytes (virtio 1.2, 5.2.4: capacity is in 512-byte sectors)
MAX_DEVICES = 31  # functions 0 of bus 0, less the host bridge
SOCKET_PATH_MAX = 107  # bytes: sun_path less its terminator


def validate(config: MachineConfig, options: RunOptions) -> None:
    """Raise ConfigError for the first thing in ``config`` or ``options`` that cannot work."""
    _check_boot(config)
    _check_count(config)
    for disk in config.disks:
        _check_disk(disk)
    _check_shared_disks(config.disks)
    _check_nets(config.nets)
    _check_chardev("--console", config.console)
    _check_chardev("--serial", config.serial)
    if config.serial.kind == config.console.kind == "stdio":
        raise ConfigError("--serial", "stdio", "the console has stdio already; add --console null")
    if config.serial.path and config.serial == config.console:
        raise ConfigError("--serial", f"file={config.serial.path}", "the console writes to this file already")
    if options.report:
        _check_output("--report", options.report)


def _check_boot(config: MachineConfig) -> None:
    if not config.kernel:
        raise ConfigError("--kernel", "", "is needed with --initrd")
    _check_readable("--kernel", config.kernel)
    if config.initrd:
        _check_readable("--initrd", config.initrd)
    from nemu.boot import loader

    loader.check(config.kernel, config.initrd, config.append, config.memory)


def _check_count(config: MachineConfig) -> None:
    count = len(config.disks) + len(config.nets) + config.rng + 1
    if count > MAX_DEVICES:
        many = "--disk" if len(config.disks) >= len(config.nets) else "--net"
        raise ConfigError(many, "", f"{count} devices do not fit the bus: at most {MAX_DEVICES} in all")


def _check_readable(option: str, path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(option, path, (error.strerror or str(error)).lower()) from None
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(option, path, "is a directory, must be a file")
    if not os.access(path, os.R_OK):
        raise ConfigError(option, path, "cannot be read (permission denied)")
    return found


def _check_disk(disk: DiskConfig) -> None:
    found = _check_readable("--disk", disk.path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise ConfigError("--disk", disk.path, "must be a raw image or a block device")
    if not disk.readonly and not os.access(disk.path, os.W_OK):
        raise ConfigError("--disk", disk.path, "cannot be written; add ,readonly=on")
    if stat.S_ISREG(found.st_mode) and (found.st_size == 0 or found.st_size % SECTOR):
        raise ConfigError(
            "--disk",
            disk.path,
            f"has {found.st_size} bytes, must be a raw image of whole {SECTOR}-byte sectors",
        )


def _check_shared_disks(disks: tuple[DiskConfig, ...]) -> None:
    seen: dict[tuple[int, ...], DiskConfig] = {}
    for disk in disks:
        found = os.stat(disk.path)
        block = stat.S_ISBLK(found.st_mode)
        identity = (found.st_rdev,) if block else (found.st_dev, found.st_ino)
        first = seen.setdefault(identity, disk)
        if first is not disk and not (first.readonly and disk.readonly):
            raise ConfigError("--disk", disk.path, "is given twice; this needs readonly=on for both")


def _check_nets(nets: tuple[NetConfig, ...]) -> None:
    for index, net in enumerate(nets):
        if net.backend == "fd":
            _check_descriptor(net.fd)
        for other in nets[:index]:
            if net.backend != "user" and (net.backend, net.tap, net.fd) == (
                other.backend,
                other.tap,
                other.fd,
            ):
                raise ConfigError("--net", _describe(net), "is given twice; a tap serves one network card")
            if net.mac and net.mac == other.mac:
                raise ConfigError("--net", _describe(net), f"mac={net.mac} is given twice")


def _describe(net: NetConfig) -> str:
    return {"tap": f"tap={net.tap}", "fd": f"fd={net.fd}"}.get(net.backend, net.backend)


def _check_descriptor(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        raise ConfigError("--net", f"fd={fd}", "no such open descriptor was inherited") from None


def _check_chardev(option: str, chardev: ChardevConfig) -> None:
    if chardev.kind == "file":
        _check_output(option, chardev.path)
    if chardev.kind == "socket":
        if len(os.fsencode(chardev.path)) > SOCKET_PATH_MAX:
            raise ConfigError(option, chardev.path, f"a socket path has at most {SOCKET_PATH_MAX} bytes")
        _check_folder(option, chardev.path)


def _check_output(option: str, path: str) -> None:
    """Raise ConfigError unless ``path`` can be written or made."""
    if os.path.isdir(path):
        raise ConfigError(option, path, "is a directory, must be a file")
    if not os.path.exists(path):
        _check_folder(option, path)
    elif not os.access(path, os.W_OK):
        raise ConfigError(option, path, "cannot be written (permission denied)")


def _check_folder(option: str, path: str) -> None:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ConfigError(option, path, f"there is no directory {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(option, path, f"no permission to make a file in {folder}")
