"""``nemu ps``: the running machines of this user."""

from __future__ import annotations

import argparse
import socket
import struct
import sys
from typing import Any, NamedTuple

from nemu import rundir
from nemu.cli.running import open_connection
from nemu.qmp.client import ClosedError, QmpClient
from nemu.qmp.errors import QmpError
from nemu.syntax import show_size

PATIENCE = 2.0  # seconds for the answers of one machine

_DESCRIPTION = """\
List the running machines of this user, and remove what those left behind that were killed."""


class Running(NamedTuple):
    """A machine; without an answer of its own only ``name`` and ``pid`` are known."""

    name: str
    pid: int
    status: str = "no answer"
    cpus: int = 0
    memory: int = 0  # bytes


def register(subparsers: Any, name: str) -> None:
    """Add ``ps`` to the commands."""
    parser = subparsers.add_parser(name, help="list the running machines", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each machine."""
    found = [machine for name in rundir.names() if (machine := look(name)) is not None]
    if arguments.json:
        import json

        sys.stdout.write(json.dumps([machine._asdict() for machine in found], indent=2) + "\n")
        return 0
    rows = [("NAME", "PID", "STATUS", "CPUS", "MEMORY")]
    for one in found:
        known = (str(one.cpus), show_size(one.memory)) if one.cpus else ("", "")
        rows.append((one.name, str(one.pid), one.status, *known))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def look(name: str) -> Running | None:
    """The machine ``name``, None when it has just gone."""
    try:
        connection = open_connection(rundir.path_of(name), PATIENCE)
    except OSError:
        return None
    # Who listens: of the emulated host that is the process here, not the one inside.
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    machine = Running(name, struct.unpack("3i", credentials)[0])
    try:
        client = QmpClient(connection)
        return machine._replace(
            status=client.execute("query-status")["status"],
            cpus=len(client.execute("query-cpus-fast")),
            memory=client.execute("query-memory-size-summary")["base-memory"],
        )
    except (TimeoutError, QmpError):
        return machine
    except ClosedError:
        return None
    finally:
        connection.close()
