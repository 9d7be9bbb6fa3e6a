"""Who may look at and steer a run: QMP clients.

They come in by sockets that were asked for, and by the user's run directory.  What serves them is imported
when there is a socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemu.config import RunOptions
    from nemu.qmp.server import Server
    from nemu.qmp.sockets import Endpoint
    from nemu.session import Session


class Management:
    """The sockets of ``session``, as ``options`` ask for them."""

    def __init__(self, session: Session, options: RunOptions) -> None:
        self._session = session
        self._options = options
        self._server: Server | None = None

    def open(self) -> None:
        """Before the guest runs.  Raises ConfigError and HostError."""
        if any(config.kind != "off" for config in self._options.qmp):
            from nemu.qmp.sockets import open_endpoints

            for endpoint in open_endpoints(self._options):
                self._serve(endpoint)
        if self._options.name:
            self._enter_run_directory()
        else:  # nobody has asked for that, so it need not be there before the guest runs
            self._session.loop.call_soon(self._enter_run_directory)

    def emit(self, event: str, /, **data: Any) -> None:
        """Tell clients of a QMP event."""
        if self._server is not None:
            self._server.emit(event, data)

    def close(self) -> None:
        """Idempotent."""
        if self._server is not None:
            self._server.close()

    def _enter_run_directory(self) -> None:
        from nemu.qmp.sockets import open_in_run_directory

        endpoint = open_in_run_directory(self._options)
        if endpoint is not None:
            self._serve(endpoint)

    def _serve(self, endpoint: Endpoint) -> None:
        if self._server is None:
            from nemu.qmp.server import Server

            self._server = Server(self._session, self._session.loop)
        self._server.open(endpoint)
