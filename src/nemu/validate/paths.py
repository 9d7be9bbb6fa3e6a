"""Files and directories that settings name."""

from __future__ import annotations

import os
import stat

from nemu.errors import ConfigError

SOCKET_PATH_MAX = 107  # bytes: sun_path less its terminator


def readable(option: str, path: str) -> os.stat_result:
    """Raise ConfigError unless ``path`` is there, no directory, and can be read."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(option, path, (error.strerror or str(error)).lower()) from None
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(option, path, "is a directory, must be a file")
    if not os.access(path, os.R_OK):
        raise ConfigError(option, path, "cannot be read (permission denied)")
    return found


def descriptor(option: str, key: str, fd: int) -> None:
    """Raise ConfigError unless ``fd``, given as ``key=fd``, is open."""
    try:
        os.fstat(fd)
    except OSError:
        raise ConfigError(option, f"{key}={fd}", "no such open descriptor was inherited") from None


def output(option: str, path: str) -> None:
    """Raise ConfigError unless ``path`` can be written or made."""
    if os.path.isdir(path):
        raise ConfigError(option, path, "is a directory, must be a file")
    if not os.path.exists(path):
        folder(option, path)
    elif not os.access(path, os.W_OK):
        raise ConfigError(option, path, "cannot be written (permission denied)")


def socket(option: str, path: str) -> None:
    """Raise ConfigError unless a Unix socket can be made at ``path``."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ConfigError(option, path, f"a socket path has at most {SOCKET_PATH_MAX} bytes")
    folder(option, path)


def listening(option: str, value: str, path: str) -> None:
    """Raise ConfigError unless ``path``, given in ``value``, is a socket that one may connect to."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(option, value, (error.strerror or str(error)).lower()) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(option, value, "is no socket")
    if not os.access(path, os.W_OK):
        raise ConfigError(option, value, "cannot be connected to (permission denied)")


def directory(option: str, value: str, path: str) -> None:
    """Raise ConfigError unless ``path``, given in ``value``, is a directory that one may enter."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(option, value, (error.strerror or str(error)).lower()) from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(option, value, "must be a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(option, value, "cannot be read (permission denied)")


def folder(option: str, path: str) -> None:
    """Raise ConfigError unless a file can be made in the directory of ``path``."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ConfigError(option, path, f"there is no directory {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(option, path, f"no permission to make a file in {folder}")


def image(option: str, path: str, readonly: bool) -> os.stat_result:
    """Raise ConfigError unless ``path`` is a file or a block device that can be used so."""
    found = readable(option, path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise ConfigError(option, path, "must be an image or a block device")
    if not readonly and not os.access(path, os.W_OK):
        raise ConfigError(option, path, "cannot be written; add ,readonly=on")
    return found
