"""How a command finds a running machine and talks to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nemu import rundir, syntax
from nemu.errors import ConfigError, HostError
from nemu.qmp.client import ClosedError, QmpClient
from nemu.qmp.errors import QmpError

if TYPE_CHECKING:
    import argparse

PATIENCE = 30.0  # seconds: a machine that does not answer for so long is stuck


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The argument that says which machine."""
    parser.add_argument("vm", metavar="VM", help="its name (nemu ps), or the path of a QMP socket")


def address(vm: str) -> str | tuple[str, int]:
    """Where the QMP server of ``vm`` is: a name, a path with a slash in it, or ``tcp=HOST:PORT``."""
    kind, equals, rest = vm.partition("=")
    if equals and kind == "tcp":
        host, _, port = rest.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError("VM", vm, "must be tcp=HOST:PORT")
        return host, int(port)
    if "/" in vm:
        return vm
    try:
        syntax.machine_name(vm)
    except ValueError as error:
        raise ConfigError("VM", vm, str(error)) from None
    names = rundir.names()
    if vm not in names:
        hint = syntax.nearest(vm, names) or "; nemu ps lists those that run"
        raise ConfigError("VM", vm, f"no running machine has this name{hint}")
    return rundir.path_of(vm)


def open_connection(where: str | tuple[str, int], patience: float = PATIENCE) -> socket.socket:
    """Raises OSError."""
    connection = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    try:
        connection.settimeout(patience)
        connection.connect(where)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def client(vm: str) -> Iterator[QmpClient]:
    """A client of ``vm``; what its server refuses becomes a HostError, as does its silence."""
    where = address(vm)
    try:
        with QmpClient(open_connection(where)) as one:
            yield one
    except QmpError as error:
        raise HostError(f"{vm}: {error} ({error.kind})") from error
    except ClosedError:
        raise HostError(f"{vm}: the machine has ended") from None
    except TimeoutError:
        raise HostError(f"{vm}: no answer within {PATIENCE:.0f} s") from None
    except OSError as error:
        raise HostError(f"{vm}: {os.strerror(error.errno) if error.errno else error}") from error
