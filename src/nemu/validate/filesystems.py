"""``--fs``."""

from __future__ import annotations

import os

from nemu.config.fs import FsConfig
from nemu.errors import ConfigError
from nemu.validate import paths


def check(filesystems: tuple[FsConfig, ...]) -> None:
    """Raise ConfigError for the first file system that cannot work."""
    for index, fs in enumerate(filesystems):
        if any(fs.tag == other.tag for other in filesystems[:index]):
            raise ConfigError("--fs", f"tag={fs.tag}", "is given twice; the guest mounts a file system by it")
        if fs.dir:
            paths.directory(fs.option, f"dir={fs.dir}", fs.dir)
            continue
        paths.listening(fs.option, f"socket={fs.socket}", fs.socket)
        others = (other.socket for other in filesystems[:index] if other.socket)
        if any(os.path.samefile(fs.socket, other) for other in others):
            raise ConfigError("--fs", f"socket={fs.socket}", "is given twice; a virtiofsd serves one device")
