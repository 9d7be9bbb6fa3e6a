"""The other direction: requests of the back end ("Back-end communication" in vhost-user.rst).

Threat note: a back end may send them as fast as it likes.  One look takes a few KiB, and a change of the
configuration is told once, however often it is announced meanwhile.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from nemu.interfaces import EventLoop
from nemu.vhost.user import message
from nemu.vhost.user.channel import receive
from nemu.vhost.user.message import BackendError, Inbox, Message

_REFUSED = 1


class Requests:
    """A socket pair: ``theirs`` is for SET_BACKEND_REQ_FD.

    ``config_changed`` is called when the configuration space has changed, ``lost`` when the back end sends
    garbage.  Everything else, such as maps of its memory into the guest, is refused.
    """

    def __init__(
        self, loop: EventLoop, config_changed: Callable[[], None], lost: Callable[[BackendError], None]
    ) -> None:
        self._loop = loop
        self._config_changed = config_changed
        self._lost = lost
        self._inbox = Inbox()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self._open = True
        loop.add_reader(self._ours.fileno(), self._receive)

    @property
    def theirs(self) -> int:
        return self._theirs.fileno()

    def sent(self) -> None:
        """The back end has its end."""
        self._theirs.close()

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._ours.fileno())
            self._ours.close()
            self._theirs.close()
            self._inbox.close()

    def _receive(self) -> None:
        try:
            receive(self._ours, self._inbox)
            while self._open and (request := self._inbox.next()) is not None:
                self._serve(request)
        except BlockingIOError:
            return
        except EOFError:  # it has no requests to make
            self.close()
        except BackendError as error:
            self._lost(error)

    def _serve(self, request: Message) -> None:
        message.close_all(request.fds)
        changed = request.id == message.BACKEND_CONFIG_CHANGE
        if changed:
            self._config_changed()
        if request.flags & message.FLAG_NEED_REPLY:
            header = message.HEADER.pack(request.id, message.VERSION | message.FLAG_REPLY, 8)
            try:
                self._ours.send(header + struct.pack("=Q", 0 if changed else _REFUSED))
            except OSError as error:  # also when it reads no reply: then there is no room
                raise BackendError(f"makes requests and takes no replies ({error.strerror})") from error
