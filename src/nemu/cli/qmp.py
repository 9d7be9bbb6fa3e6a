"""``nemu qmp``: talk to a running machine in its own language, in a shell or one command at a time."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nemu.cli.running import add_machine, address, client
from nemu.errors import ConfigError

_DESCRIPTION = """\
Talk QMP, QEMU's machine protocol, to a running machine. With a command, print its result as JSON;
without one, start a shell with completion, `help` and the machine's events as they come."""

_EPILOG = """\
A VALUE is text or a number as the command wants it, or JSON; KEY may go into an object: model.name=host.

examples:
  nemu qmp vm-4711                         a shell; Tab completes, help explains, Ctrl-D leaves
  nemu qmp vm-4711 query-status
  nemu qmp ./qmp.sock balloon value=268435456"""


def register(subparsers: Any, name: str) -> None:
    """Add ``qmp`` to the commands."""
    parser = subparsers.add_parser(
        name, help="talk QMP to a running machine", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_machine(parser)
    parser.add_argument("execute", metavar="COMMAND", nargs="?", help="the command, such as query-status")
    parser.add_argument("arguments", metavar="KEY=VALUE", nargs="*", help="its arguments")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A shell, or one command."""
    if arguments.execute is None:
        from nemu.cli.qmp_shell import shell

        return shell(address(arguments.vm))
    from nemu.cli.qmp_words import Words

    with client(arguments.vm) as qmp:
        words = Words(qmp.execute("query-qmp-schema"))
        try:
            given = words.arguments(arguments.execute, arguments.arguments)
        except ValueError as error:
            raise ConfigError(arguments.execute, "", str(error)) from None
        print(json.dumps(qmp.execute(arguments.execute, given), indent=2))
    return 0
