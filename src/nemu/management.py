"""Who may look at and steer a run: QMP clients.

They come in by sockets that were asked for, and by the user's run directory.  What serves them is imported
when there is a socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemu.errors import NemuError

if TYPE_CHECKING:
    from nemu.config import RunOptions
    from nemu.qmp.server import Server
    from nemu.session import Session


class Management:
    """The sockets of ``session``, as ``options`` ask for them."""

    def __init__(self, session: Session, options: RunOptions) -> None:
        self._session = session
        self._options = options
        self._server: Server | None = None

    def open(self) -> None:
        """Before the guest runs.  Raises ConfigError and HostError."""
        options = self._options
        wanted = [config for config in options.qmp if config.kind != "off"]
        if wanted:
            from nemu.qmp.sockets import open_endpoint

            for config in wanted:
                self._serving().open(open_endpoint(config))
        if options.name:
            self._enter_run_directory()
        elif len(wanted) == len(options.qmp):
            # Nobody has asked for this socket, so it need not be there before the guest runs.
            self._session.loop.call_soon(self._try_run_directory)

    def emit(self, event: str, /, **data: Any) -> None:
        """Tell clients of a QMP event."""
        if self._server is not None:
            self._server.emit(event, data)

    def close(self) -> None:
        """Idempotent."""
        if self._server is not None:
            self._server.close()

    def _serving(self) -> Server:
        if self._server is None:
            from nemu.qmp.server import Server

            self._server = Server(self._session, self._session.loop)
        return self._server

    def _enter_run_directory(self) -> None:
        """Listen where nemu's own commands look for running machines."""
        from nemu.qmp.sockets import in_run_directory

        self._serving().open(in_run_directory(self._session.name))

    def _try_run_directory(self) -> None:
        try:
            self._enter_run_directory()
        except NemuError:
            pass  # without a run directory a machine that nobody has named runs all the same
