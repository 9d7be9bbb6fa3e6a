"""The argument parser: subcommands by name, and argparse's own errors in nemu's shape."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import nemu
from nemu import syntax
from nemu.errors import ConfigError

# Each subcommand is the module of its name in this package, or of _MODULES; help lists them in this order.
COMMANDS = {
    "run": "start a virtual machine and wait for its end",
    "ps": "list the running machines",
    "stop": "shut a machine down, or end it",
    "powerdown": "press a machine's power button",
    "reset": "press a machine's reset button",
    "pause": "hold a running machine",
    "resume": "let a paused machine go on",
    "plug": "plug a device into a running machine",
    "unplug": "take devices out of a running machine",
    "resize": "give a running machine more or fewer CPUs, or memory",
    "console": "use the console of a running machine",
    "qmp": "talk QMP to a running machine",
    "doctor": "tell what this host offers and what to do about a miss",
    "guest": "build the small guest that `nemu run` boots without --kernel",
    "shrink": "remove from a C tree what a profile does not need",
    "completion": "print a completion script for a shell",
}
_MODULES = dict.fromkeys(("stop", "powerdown", "reset", "pause", "resume"), "control")
_MODULES |= dict.fromkeys(("unplug", "resize"), "plug")

_DESCRIPTION = """\
nemu runs a Linux kernel on a virtual machine without legacy hardware, on KVM.
Where KVM is missing or slow it does the same inside an emulated host, by itself."""

_EPILOG = """\
examples:
  nemu run                     boot the small guest, which shows its machine
  nemu run --kernel /boot/vmlinuz --append console=hvc0 --disk root.img --net user
  nemu ps                      what runs here; stop, pause, console and others take its name
  nemu doctor                  is this host good for nemu?
  nemu run --help              all about a machine's settings"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse makes one for every option; without a width it would load shutil to find it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_width())


def _width() -> int:
    """Columns for help: COLUMNS, the terminal's, or 80; at most 110, for reading."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return min(int(columns), 110)
    try:
        return min(os.get_terminal_size(1).columns or 80, 110) - 2
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of printing its usage and leaving."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        subject, colon, problem = message.partition(": ")
        if colon and subject.startswith("argument "):
            raise ConfigError(subject.removeprefix("argument "), "", f"{problem} ({self.prog} --help)")
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise ConfigError(missing, "", f"is missing ({self.prog} --help)")
        raise ConfigError(self.prog, "", message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does, but with the nearest right word instead of a dump of all."""
        if action.choices is not None and value not in action.choices:
            words = [str(word) for word in action.choices]
            hint = syntax.nearest(str(value), words) or f"; must be {syntax.either(words)}"
            raise ConfigError(str(action.metavar or action.dest).lower(), value, f"unknown{hint}")


def build(commands: Sequence[str]) -> Parser:
    """The whole parser with ``commands`` filled in; the others are only listed."""
    parser = Parser(prog="nemu", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"nemu {nemu.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, about in COMMANDS.items():
        if name in commands:
            import_module(f"nemu.cli.{_MODULES.get(name, name)}").register(subparsers, name)
        else:
            subparsers.add_parser(name, help=about, add_help=False)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments in ``argv``, whose ``run`` runs the command; ConfigError for a mistake."""
    command = next((word for word in argv if not word.startswith("-")), "")
    parser = build([command])
    words: list[str] = []
    if command == "run" and "--" in argv:
        behind = list(argv).index("--")
        argv, words = argv[:behind], list(argv[behind + 1 :])
        if not words:
            raise ConfigError("--", "", "needs a command behind it (nemu run --help)")
    arguments, extra = parser.parse_known_args(argv)
    if words:
        arguments.command_words = words
    if extra:
        _refuse(parser, command, extra[0].partition("=")[0])
    if not command:
        raise ConfigError(f"a command is needed, one of {', '.join(COMMANDS)}", "", "see nemu --help")
    return arguments


def _refuse(parser: Parser, command: str, word: str) -> NoReturn:
    """Raise ConfigError for ``word``, which ``command`` does not have."""
    from nemu.cli.completion import commands

    if not word.startswith("-"):
        raise ConfigError(word or "''", "", f"unexpected argument (nemu {command} --help)")
    options = [known.name for one in commands(parser) if one.path.startswith(command) for known in one.words]
    close = syntax.nearest(word, options)
    raise ConfigError(word, "", f"no such option{close} ({f'nemu {command}'.strip()} --help)")
