"""Takes clients off a listening socket, as fast as somebody wants them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from nemu.interfaces import EventLoop

# What accept(2) fails with until somebody gives something back.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
RETRY = 1.0  # seconds


class Acceptor:
    """Between ``resume`` and ``pause`` each client of ``listener`` is handed to ``accepted``, non-blocking.

    Else clients wait in the backlog; so they do while the host has no descriptor for them.
    """

    def __init__(
        self, listener: socket.socket, loop: EventLoop, accepted: Callable[[socket.socket], None]
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._accepted = accepted
        self._wanted = False

    def resume(self) -> None:
        self._wanted = True
        self._watch()

    def pause(self) -> None:
        self._wanted = False
        self._loop.remove_reader(self._listener.fileno())

    def _watch(self) -> None:
        if self._wanted:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # the socket stays readable: the loop would do nothing else
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(RETRY, self._watch)
            return  # else the client has gone again
        client.setblocking(False)
        self._accepted(client)
