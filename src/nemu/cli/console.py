"""``nemu console``: this terminal becomes the console of a running machine."""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
from typing import Any

from nemu.cli.running import add_machine, client
from nemu.errors import ConfigError, HostError

_DESCRIPTION = """\
Use the console of a machine that was started with --console socket=PATH. Ctrl-A X leaves it to
itself, Ctrl-A Ctrl-A sends Ctrl-A. One at a time can use a console; the next one waits."""

_HELP = (
    b"\r\nCtrl-A X       leave the console; the machine goes on"
    b"\r\nCtrl-A Ctrl-A  send a Ctrl-A to the guest"
    b"\r\nCtrl-A H       this help\r\n"
)
CHUNK = 4096


def register(subparsers: Any, name: str) -> None:
    """Add ``console`` to the commands."""
    parser = subparsers.add_parser(
        name, help="use the console of a running machine", description=_DESCRIPTION
    )
    add_machine(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return when the user leaves, the input ends, or the machine does."""
    with client(arguments.vm) as qmp:
        chardevs = qmp.execute("query-chardev")
    where = next((one["filename"] for one in chardevs if one["label"] == "console"), "not there")
    kind, _, path = where.partition(":")
    if kind != "unix":
        raise ConfigError(
            "VM", arguments.vm, f"its console is {where}; --console socket=PATH makes it reachable"
        )
    with socket.socket(socket.AF_UNIX) as console:
        try:
            console.connect(path)
        except OSError as error:
            raise HostError(f"cannot connect to {path}: {error.strerror}") from None
        _join(console)
    return 0


def _join(console: socket.socket) -> None:
    """Bytes from standard input to ``console`` and from there to standard output."""
    from nemu.backends.stdio import EscapeFilter, RawTerminal

    left = False

    def leave() -> None:
        nonlocal left
        left = True

    keys = EscapeFilter(leave, lambda: _print(_HELP))
    is_terminal = os.isatty(0)
    terminal = RawTerminal(0) if is_terminal else None
    sources = [0, console.fileno()]
    try:
        while not left:
            for fd in select.select(sources, [], [])[0]:
                data = os.read(fd, CHUNK) if fd == 0 else console.recv(CHUNK)
                if fd == 0 and not data:
                    sources.remove(0)  # what the guest still has to say is read
                    console.shutdown(socket.SHUT_WR)
                elif fd == 0:
                    console.sendall(keys.feed(data) if is_terminal else data)
                elif not data:
                    return
                else:
                    _print(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the machine has ended
    finally:
        if terminal is not None:
            terminal.restore()
            print()


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
