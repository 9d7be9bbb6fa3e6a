"""``nemu run -- COMMAND``: the machine that runs a command, out of the settings and of where nemu is run.

What depends on the user's session (directory, environment, terminal) is settled here, outside of any
emulated host; everything behind it is an ordinary machine with a shared root.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from nemu.config.fs import FsConfig
from nemu.errors import ConfigError

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.host.guest import Guest

ROOT_TAG = "nemu.root"
INIT = "rdinit=/command"  # which archive.py brings into the initramfs of the small guest
# What a program wants to know of the user and the terminal.  Nothing else of the environment goes along.
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ")
_KEPT_PREFIX = "LC_"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def prepare(config: MachineConfig, guest: Guest) -> MachineConfig:
    """``config`` with all that its command needs; ``guest`` brings a kernel, if it has none, and the init.

    Raises ConfigError.
    """
    if config.initrd:
        raise ConfigError("--initrd", config.initrd, "a command has an initial RAM disk of its own")
    if any(fs.tag == ROOT_TAG for fs in config.filesystems):
        raise ConfigError("--fs", f"tag={ROOT_TAG}", "is the command's root")
    root = os.path.abspath(config.root or "/")
    shared = FsConfig(ROOT_TAG, dir=root, readonly=not config.rw)
    console = config.console
    if console.kind == "stdio" and not _is_terminal():
        console = console._replace(kind="null")
    return replace(
        config,
        kernel=config.kernel or guest.kernel,
        initrd=guest.initrd,
        append=f"{guest.append} {INIT} {config.append}".strip(),
        root=root,
        filesystems=(*config.filesystems, shared),
        directory=config.directory or _directory(root),
        env=tuple(_environment(config.env)),
        console=console,
    )


def _is_terminal() -> bool:
    """Whether the command gets a terminal: as a shell's job in the foreground that is not in a pipeline."""
    from nemu.backends.stdio import is_our_terminal

    return is_our_terminal(0) and os.isatty(1)


def _directory(root: str) -> str:
    """The current directory as the guest sees it; its root when it lies elsewhere."""
    here, top = os.getcwd(), os.path.realpath(root)
    if os.path.commonpath((here, top)) != top:
        return "/"
    return "/" + os.path.relpath(here, top) if here != top else "/"


def _environment(given: tuple[str, ...]) -> list[str]:
    """``NAME=VALUE`` of what is kept and what was asked for; the last one of a name counts."""
    own = os.environ
    found = {name: own[name] for name in own if name in _KEPT or name.startswith(_KEPT_PREFIX)}
    found.setdefault("PATH", _PATH)
    for variable in given:
        name, equals, value = variable.partition("=")
        if equals:
            found[name] = value
        elif name in own:
            found[name] = own[name]
        else:
            raise ConfigError("--env", name, "is not set here; give it as NAME=VALUE")
    return [f"{name}={value}" for name, value in found.items()]
