"""Every QMP client of a run, in the event loop.

A server outlives machines: a client stays over resets.  What it takes to answer is imported with the first.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from nemu.interfaces import EventLoop
    from nemu.qmp.connection import Connection
    from nemu.qmp.descriptors import Sets
    from nemu.qmp.events import Throttle
    from nemu.qmp.sockets import Endpoint
    from nemu.session import Session

MAX_CLIENTS = 16  # more of them wait in the backlog of the socket
DRAIN_SECONDS = 0.5  # for all clients together, at the end of the run
RETRY_SECONDS = 1.0


class Server:
    """Serves clients with what ``session`` can do."""

    def __init__(self, session: Session, loop: EventLoop) -> None:
        self.session = session
        self.loop = loop
        self.sets: Sets
        self._endpoints: list[Endpoint] = []
        self._clients: list[Connection] = []
        self._throttle: Throttle | None = None

    def open(self, endpoint: Endpoint) -> None:
        """Serve the clients who come to ``endpoint``, or the one who is there already."""
        if endpoint.listens:
            self._endpoints.append(endpoint)
            self._watch()
        else:
            self._begin(endpoint.take())

    def _begin(self, client: socket.socket) -> None:
        from nemu.qmp.connection import Connection
        from nemu.qmp.descriptors import Sets
        from nemu.qmp.events import Throttle

        if self._throttle is None:
            self.sets = Sets()
            self._throttle = Throttle(self.loop, self._broadcast)
        connection = Connection(self, client)
        self._clients.append(connection)
        connection.begin()
        self._watch()

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Tell every client that has negotiated."""
        if self._throttle is not None:
            self._throttle.put(event, data)

    def forget(self, client: Connection) -> None:
        """``client`` is gone."""
        self._clients.remove(client)
        if not self._clients:
            self.sets.close()
        self._watch()

    def close(self) -> None:
        """Say what is still to be said, and drop everybody.  Idempotent."""
        while self._endpoints:
            endpoint = self._endpoints.pop()
            self.loop.remove_reader(endpoint.socket.fileno())
            endpoint.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        for client in self._clients.copy():
            client.close(max(0.0, deadline - time.monotonic()))
        if self._throttle is not None:
            self._throttle.close()

    def _broadcast(self, message: dict[str, Any]) -> None:
        for client in self._clients.copy():
            if client.negotiated:
                client.send(message)

    def _watch(self) -> None:
        """Look out for clients while there is room for one."""
        for endpoint in self._endpoints:
            listener = endpoint.socket
            if len(self._clients) < MAX_CLIENTS:
                self.loop.add_reader(listener.fileno(), partial(self._accept, listener))
            else:
                self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # it has gone again
            return
        except OSError:  # no descriptor is left for it
            self.loop.remove_reader(listener.fileno())
            self.loop.call_later(RETRY_SECONDS, self._watch)
            return
        self._begin(client)
