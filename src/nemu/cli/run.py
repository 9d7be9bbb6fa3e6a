"""``nemu run``: settings to a machine, the machine to a host."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from nemu.cli import complain
from nemu.config import MIB, Given, MachineConfig, RunOptions, assemble, settings
from nemu.errors import ConfigError
from nemu.syntax import show_size

# Its kernel takes some 50 MiB; below this it panics, before it could tell anybody.
SMALL_GUEST_MEMORY = 80 * MIB

COMMAND_MEMORY = "1G"  # of a guest that runs a command: as it touches it

_DESCRIPTION = """\
Start a virtual machine and wait until its guest powers off.

nemu run [OPTION...] -- COMMAND [ARGUMENT...] runs a command in a throwaway guest instead. Its root is this
host's, read-only under what it writes itself (--rw writes through); its memory is 1G unless set; input,
output, terminal, current directory and exit status are the command's.

The terminal belongs to the guest; Ctrl-A X leaves, Ctrl-A Ctrl-A sends Ctrl-A. SIGTERM presses the
power button, a second one ends the machine at once."""

_EPILOG = """\
exit status:
  0 the guest powered off     2 a setting is wrong     4 --timeout ran out
  1 the host failed           3 the guest crashed (panic, triple fault)

examples:
  nemu run
      boot nemu's small guest, which shows its CPUs, devices and tables
  nemu run -- make test
  nemu run --kernel arch/x86/boot/bzImage --cpus 4 --env CI -- tools/testing/run.sh 2>errors
      run a command in a guest, the second one on a kernel just built
  nemu run --kernel /boot/vmlinuz --initrd /boot/initrd.img --append 'console=hvc0 root=/dev/vda' \\
           --disk root.img --net user --memory 2G --cpus 2
      boot a distribution's kernel from a raw image with user-mode networking
  nemu run --config vm.toml --timeout 60 --report run.json
      the same settings from a file (the options here are its keys; the command line wins):
          kernel = "vmlinuz"            # relative to the file's folder
          append = "console=hvc0"
          memory = "2G"
          disk = ["root.img,readonly=on", { path = "data.img", serial = "data" }]"""


def register(subparsers: Any, name: str) -> None:
    """Add ``run`` to the commands."""
    parser = subparsers.add_parser(
        name,
        help="start a virtual machine and wait for its end",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    for setting in settings():
        if setting.words:
            continue  # the parser has taken them away
        optional: dict[str, Any] = {"nargs": "?", "const": "on"} if setting.flag else {}
        parser.add_argument(
            f"--{setting.option}",
            dest=setting.option,
            metavar=setting.metavar,
            help=setting.help.replace("%", "%%"),
            action="append" if setting.many else "store",
            default=argparse.SUPPRESS,
            **optional,
        )
    parser.add_argument("--config", metavar="FILE", help="read settings from a TOML file")
    # The emulated host hands the whole machine over to the nemu inside it.
    parser.add_argument("--machine-json", metavar="FILE", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the machine that ``arguments`` describe; gives the exit status."""
    config, options = configure(arguments)
    if arguments.machine_json is not None:
        pass  # it is complete
    elif config.command:
        config = _with_command(config)
    elif not config.kernel and not config.initrd:
        config = _with_small_guest(config)
    from nemu.validate import validate

    validate(config, options)
    if _emulate(options):
        from nemu.host import emulated

        return emulated.run(config, options)
    from nemu import session

    return session.run(config, options)


def configure(arguments: argparse.Namespace) -> tuple[MachineConfig, RunOptions]:
    """The settings of the configuration file, then those of the command line over them."""
    given: dict[str, Given] = {}
    if arguments.config is not None:
        from nemu import config_file

        given = config_file.load(arguments.config)
    for setting in settings():
        name = "command_words" if setting.words else setting.option
        if hasattr(arguments, name):
            label = "--" if setting.words else f"--{setting.option}"
            given[setting.option] = Given(label, getattr(arguments, name))
    if "command" in given:
        given.setdefault("memory", Given("--memory", COMMAND_MEMORY))
    config, options = assemble(given)
    if arguments.machine_json is not None:
        config = _machine_from(arguments.machine_json)
    return config, options


def _machine_from(path: str) -> MachineConfig:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return MachineConfig.from_json(file.read())
    except OSError as error:
        raise ConfigError("--machine-json", path, (error.strerror or str(error)).lower()) from None
    except ValueError as error:
        raise ConfigError("--machine-json", path, str(error)) from None


def _with_command(config: MachineConfig) -> MachineConfig:
    from nemu.command.prepare import prepare
    from nemu.host import guest

    return prepare(config, guest.ensure())


def _with_small_guest(config: MachineConfig) -> MachineConfig:
    from nemu.host import guest

    if config.memory.size < SMALL_GUEST_MEMORY:
        needed = show_size(SMALL_GUEST_MEMORY)
        raise ConfigError(
            "--memory", show_size(config.memory.size), f"the small guest needs at least {needed}"
        )
    small = guest.ensure()
    append = f"{small.append} {config.append}".strip()
    return replace(config, kernel=small.kernel, initrd=small.initrd, append=append)


def _emulate(options: RunOptions) -> bool:
    """Whether the machine has to run in the emulated host."""
    if options.host != "auto":
        return options.host == "emulated"
    from nemu.host.probe import probe

    found = probe()
    if found.usable and found.fast:
        return False
    complain(f"no fast KVM here ({found.reason}): using the emulated host")
    return True
