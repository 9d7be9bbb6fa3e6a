"""``nemu pause``, ``resume``, ``reset``, ``powerdown`` and ``stop``: a running machine does as it is told."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any, NamedTuple

from nemu import syntax
from nemu.cli import complain
from nemu.cli.running import add_machine, client
from nemu.errors import ConfigError
from nemu.qmp.client import ClosedError, QmpClient

GRACE = 30.0  # seconds that a guest gets to shut down


class Verb(NamedTuple):
    """A command here that is one command of QMP."""

    qmp: str
    help: str
    description: str


VERBS = {
    "pause": Verb(
        "stop",
        "hold a running machine",
        "Hold the CPUs and clocks of a running machine: its guest does not notice the time that passes.",
    ),
    "resume": Verb(
        "cont",
        "let a paused machine go on",
        "Let a paused machine go on, or one that was started with --start paused.",
    ),
    "reset": Verb(
        "system_reset", "press a machine's reset button", "Start a machine anew, without asking its guest."
    ),
    "powerdown": Verb(
        "system_powerdown",
        "press a machine's power button",
        "Press a machine's power button, which asks its guest to shut down, and do not wait for it.",
    ),
}

_STOP = """\
Ask a machine's guest to shut down and wait for it; end the machine when it does not."""


def register(subparsers: Any, name: str) -> None:
    """Add the command ``name``."""
    if name == "stop":
        parser = subparsers.add_parser(name, help="shut a machine down, or end it", description=_STOP)
        parser.add_argument(
            "--timeout",
            metavar="SECONDS",
            help=f"how long the guest may take; 0: do not ask (default: {GRACE:.0f})",
        )
        parser.set_defaults(run=stop)
    else:
        verb = VERBS[name]
        parser = subparsers.add_parser(name, help=verb.help, description=verb.description)
        parser.set_defaults(run=do, verb=verb)
    add_machine(parser)


def do(arguments: argparse.Namespace) -> int:
    """One command of QMP."""
    with client(arguments.vm) as qmp:
        qmp.execute(arguments.verb.qmp)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Return when the machine has ended."""
    grace = GRACE
    if arguments.timeout is not None:
        try:
            grace = syntax.seconds(arguments.timeout)
        except ValueError as error:
            raise ConfigError("--timeout", arguments.timeout, str(error)) from None
    with client(arguments.vm) as qmp:
        if grace and _shut_down(qmp, grace):
            return 0
        with suppress(ClosedError):  # it has just gone by itself
            qmp.execute("quit")
            qmp.wait_closed()
    if grace:
        complain(f"{arguments.vm} did not shut down within {grace:g} s and was ended")
    return 0


def _shut_down(qmp: QmpClient, grace: float) -> bool:
    """Whether the guest did as it was asked."""
    qmp.execute("cont")  # a paused guest would not hear of it
    qmp.execute("system_powerdown")
    return qmp.wait_closed(grace)
