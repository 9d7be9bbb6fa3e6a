"""Where clients come in: ``--qmp`` as open sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from nemu import rundir
from nemu.backends.listener import UnixListener
from nemu.config.qmp import LOOPBACK
from nemu.errors import ConfigError, NemuError

if TYPE_CHECKING:
    from nemu.config import RunOptions
    from nemu.config.qmp import QmpConfig

OPTION = "--qmp"


class Endpoint:
    """An open socket: one that listens, or one client that is there already.

    ``close`` gives it back, and its file; a client's socket is ``take``n instead.
    """

    def __init__(self, opened: socket.socket, file: UnixListener | None = None) -> None:
        self.socket = opened
        self._file = file
        self.listens = bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def take(self) -> socket.socket:
        """The socket, which this no longer owns."""
        return socket.socket(fileno=self.socket.detach())

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
        self.socket.close()


def open_endpoints(options: RunOptions) -> list[Endpoint]:
    """Those that were asked for.  Raises ConfigError, with none left open."""
    endpoints: list[Endpoint] = []
    try:
        for config in options.qmp:
            if config.kind != "off":
                endpoints.append(_open(config))
    except BaseException:
        for endpoint in endpoints:
            endpoint.close()
        raise
    return endpoints


def _open(config: QmpConfig) -> Endpoint:
    if config.kind == "unix":
        file = UnixListener(config.path, OPTION, str(config))
        return Endpoint(file.socket, file)
    try:
        return Endpoint(_inherited(config.fd) if config.kind == "fd" else _loopback(config.port))
    except OSError as error:
        raise ConfigError(OPTION, config, f"cannot listen: {error.strerror}") from None


def open_in_run_directory(options: RunOptions) -> Endpoint | None:
    """Where nemu's own commands find the machine, unless that is off.

    Raises ConfigError and HostError; but a machine that nobody has named does without.
    """
    if any(config.kind == "off" for config in options.qmp):
        return None
    try:
        file = rundir.claim(rundir.name_of(options))
    except NemuError:
        if options.name:
            raise
        return None
    return Endpoint(file.socket, file)


def _inherited(fd: int) -> socket.socket:
    opened = socket.socket(fileno=fd)
    if opened.type != socket.SOCK_STREAM:
        opened.detach()
        raise ConfigError(OPTION, f"fd={fd}", "is not a stream socket")
    opened.setblocking(False)
    opened.set_inheritable(False)
    return opened


def _loopback(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((LOOPBACK, port))
        opened.listen(4)
    except OSError:
        opened.close()
        raise
    return opened
