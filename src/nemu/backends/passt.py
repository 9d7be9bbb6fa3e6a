"""User-mode networking without root: passt at the other end of a socket.

passt detaches once it is ready, so its exit status tells whether it works, and ends when its
end of the socket closes, that is with this process, however that ends.  As root it becomes
"nobody" by itself.  On the socket a frame follows its length, 32 bits big-endian.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemu import iovec
from nemu.backends.netdev import HEADER_SIZE, MAX_FRAME
from nemu.errors import HostError

if TYPE_CHECKING:
    from nemu.config.net import Forward

PROGRAM = "passt"
MIN_FRAME = 14  # an Ethernet header
_LENGTH = struct.Struct(">I")
_NO_OFFLOAD = bytes(HEADER_SIZE)


class StreamPort:
    """Length-prefixed frames on a connected stream socket, which it owns.

    Threat note: the peer is trusted no more than the guest; a frame beyond MAX_FRAME ends the
    connection, and at most one frame each way is held in part.
    """

    name = "user"
    features = 0

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray(2 * (_LENGTH.size + MAX_FRAME))
        self._start = self._end = 0  # what of the buffer is received and not yet given to the guest
        self._unsent = b""  # the rest of a frame that went out in part

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_features(self, features: int) -> None:
        """It serves no offload."""

    def receive(self, views: Sequence[memoryview]) -> int:
        room = iovec.size(views) - HEADER_SIZE
        while (frame := self._frame()) is not None:
            if len(frame) <= room:
                iovec.scatter(views, _NO_OFFLOAD)
                return HEADER_SIZE + iovec.scatter(iovec.skip(views, HEADER_SIZE), frame)
        return 0

    def send(self, views: Sequence[memoryview]) -> bool:
        if self._unsent:
            self._unsent = self._unsent[self._send([self._unsent]) :]
            if self._unsent:
                return False
        frame = iovec.skip(views, HEADER_SIZE)
        length = iovec.size(frame)
        if length < MIN_FRAME:
            return True
        packet: list[bytes | memoryview] = [_LENGTH.pack(length), *frame]
        sent = self._send(packet)
        if sent == 0:
            return False
        if sent < _LENGTH.size + length:
            self._unsent = b"".join(packet)[sent:]
        return True

    def close(self) -> None:
        self._socket.close()

    def _send(self, packet: Sequence[bytes | memoryview]) -> int:
        try:
            return self._socket.sendmsg(packet)
        except BlockingIOError:
            return 0

    def _frame(self) -> memoryview | None:
        """The next whole frame, valid until the next call; None when there is none yet."""
        while True:
            have = self._end - self._start
            if have >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, self._start)
                if length > MAX_FRAME:
                    raise ConnectionError(f"a frame of {length} bytes from {PROGRAM}")
                if have >= _LENGTH.size + length:
                    begin = self._start + _LENGTH.size
                    self._start = begin + length
                    return memoryview(self._buffer)[begin : self._start]
            if not self._fill():
                return None

    def _fill(self) -> bool:
        """Receive more behind what is there; False when nothing came."""
        if self._start:
            self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        try:
            received = self._socket.recv_into(memoryview(self._buffer)[self._end :])
        except BlockingIOError:
            return False
        if received == 0:
            raise ConnectionError(f"{PROGRAM} has ended")
        self._end += received
        return True


def _option(forward: Forward) -> str:
    place = f"{forward.address}/" if forward.address else ""
    return f"--{forward.protocol}-ports={place}{forward.port}:{forward.guest_port}"


class Passt(StreamPort):
    """Starts passt.  ``ready`` must be called once before the guest runs: until then it may still fail.

    ``forward``: what connects to these ports of this host is connected to the guest's.
    """

    def __init__(self, program: str = PROGRAM, forward: Sequence[Forward] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._messages = os.memfd_create("passt-messages", os.MFD_CLOEXEC)
        with theirs:
            try:
                self._pid = os.posix_spawnp(
                    program,
                    [program, "--quiet", "--fd", "3", *map(_option, forward)],
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                        (os.POSIX_SPAWN_DUP2, 0, 1),
                        (os.POSIX_SPAWN_DUP2, self._messages, 2),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
                    ],
                )
            except OSError as error:
                ours.close()
                os.close(self._messages)
                missing = isinstance(error, FileNotFoundError)
                why = "is not installed; try: apt install passt" if missing else f"fails: {error.strerror}"
                raise HostError(f"--net user: passt {why}") from error
        super().__init__(ours)

    def ready(self) -> None:
        """Wait (some 25 ms from its start) until passt has set itself up.  Raises HostError if it cannot."""
        if self._pid == 0:
            return
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        said = os.pread(self._messages, 4096, 0).decode(errors="replace").split("\n")
        os.close(self._messages)
        if status:
            # Without a syslog socket it mentions that before each line of its own.
            lines = [line for line in said if line.strip() and "syslog" not in line]
            raise HostError(f"--net user: passt cannot start: {lines[-1] if lines else 'it says nothing'}")

    def close(self) -> None:
        super().close()
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0
            os.close(self._messages)
