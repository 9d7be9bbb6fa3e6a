"""How the emulated host's agent and the process outside talk: frames over one byte stream.

Both ends run the same ``Pump``.  A frame is ``kind`` (u8), ``channel`` (u32), ``length`` (u32) and a
payload, little-endian.  A job started by the outer side has a number; its streams are the channels
``8 * job + stream``: 0 goes in (stdin), 1 and up come out (stdout, stderr, a call's result, files).
Data flows under a window for each channel, so that one stream that nobody reads holds up no other.

This module runs inside the emulated host too and imports nothing of nemu.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress

HEADER = struct.Struct("<BII")
START, DATA, EOF, ACK, SIGNAL, RESIZE, EXIT, READY = range(1, 9)
STREAMS = 8  # channels of one job

WINDOW = 256 * 1024  # bytes of one channel that may be under way
CHUNK = 32 * 1024  # bytes read at once
PIPE_PIECE = 4096  # a pipe that polls writable takes this much without blocking (PIPE_BUF)
BACKLOG = 512 * 1024  # bytes queued for the link beyond which nothing more is read


class LinkClosedError(Exception):
    """The other end is gone."""


class Source:
    """Bytes that leave through a channel: from a descriptor, or given at once."""

    def __init__(self, descriptor: int = -1, data: bytes = b"", *, owned: bool = True) -> None:
        self.descriptor = descriptor
        self.data = data
        self.owned = owned
        self.credit = WINDOW

    def read(self) -> bytes:
        """The next bytes; empty at the end.  Raises BlockingIOError when there are none now."""
        size = min(self.credit, CHUNK)
        if self.descriptor < 0:
            piece, self.data = self.data[:size], self.data[size:]
            return piece
        try:
            return os.read(self.descriptor, size)
        except BlockingIOError:
            raise
        except OSError:
            return b""  # EIO: the last process on a pseudo-terminal has left

    def close(self) -> None:
        if self.owned and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Sink:
    """Where the bytes of a channel arrive: a descriptor, or ``collected`` in memory."""

    def __init__(self, descriptor: int = -1, *, owned: bool = True) -> None:
        self.descriptor = descriptor
        self.owned = owned
        self.collected = bytearray()
        self.pending = bytearray()
        self.ended = False
        regular = descriptor >= 0 and stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.piece = WINDOW if regular else PIPE_PIECE

    def write(self) -> int:
        """Pass on what one write takes without blocking; the number of bytes."""
        piece = bytes(self.pending[: self.piece])
        try:
            done = os.write(self.descriptor, piece)
        except BlockingIOError:
            return 0
        except OSError:
            done = len(self.pending)  # nobody reads any more: like a closed pipe, the rest is dropped
        del self.pending[:done]
        return done

    def close(self) -> None:
        if not self.owned or self.descriptor < 0:
            return
        if stat.S_ISSOCK(os.fstat(self.descriptor).st_mode):
            # Another descriptor still reads from the socket: its peer must learn of the end all the same.
            with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as end:
                end.shutdown(socket.SHUT_WR)
        os.close(self.descriptor)
        self.descriptor = -1


class Pump:
    """Moves frames over ``link`` (a descriptor) and bytes between channels and descriptors."""

    def __init__(
        self, link: int, on_frame: Callable[[int, int, bytes], None], on_end: Callable[[int], None]
    ) -> None:
        """``on_frame`` gets (kind, channel, payload) of what is not data; ``on_end`` a channel whose
        source has ended or whose sink has got its last byte."""
        os.set_blocking(link, False)
        self.link = link
        self.on_frame = on_frame
        self.on_end = on_end
        self.sources: dict[int, Source] = {}
        self.sinks: dict[int, Sink] = {}
        self.watched: dict[int, Callable[[], None]] = {}
        self._in = bytearray()
        self._out = bytearray()

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Queue one frame."""
        self._out += HEADER.pack(kind, channel, len(payload)) + payload

    def turn(self, timeout: float | None = None) -> None:
        """Wait for something to do (at most ``timeout`` seconds) and do it.  Raises LinkClosedError."""
        poll, owners = select.poll(), self._interests()
        for descriptor, events in owners.items():
            poll.register(descriptor, events)
        at_once = any(source.descriptor < 0 and source.credit > 0 for source in self.sources.values())
        wait = 0 if at_once and len(self._out) < BACKLOG else timeout
        ready = dict(poll.poll(None if wait is None else max(0, round(wait * 1000))))
        for descriptor in [fd for fd in self.watched if fd in ready]:
            if descriptor in self.watched:
                self.watched[descriptor]()
        if self.link in ready:
            self._receive(ready[self.link])
        self._write_sinks(ready)
        self._read_sources(ready)
        self._transmit()

    def close_channel(self, channel: int) -> None:
        """Forget a channel; its descriptor is closed if it is ours."""
        for end in (self.sources.pop(channel, None), self.sinks.pop(channel, None)):
            if end is not None:
                end.close()

    def drain(self, channel: int) -> None:
        """Send what the source of ``channel`` holds now, beyond the window if need be, then its end."""
        source = self.sources.get(channel)
        if source is None:
            return
        source.credit = max(source.credit, CHUNK)
        while True:
            try:
                data = source.read()
            except BlockingIOError:
                break
            if not data:
                break
            self.send(DATA, channel, data)
        self._end(channel)

    def _interests(self) -> dict[int, int]:
        interests = {self.link: select.POLLIN | (select.POLLOUT if self._out else 0)}
        wanted = [(fd, select.POLLIN) for fd in self.watched]
        if len(self._out) < BACKLOG:
            wanted += [
                (source.descriptor, select.POLLIN)
                for source in self.sources.values()
                if source.descriptor >= 0 and source.credit > 0
            ]
        wanted += [
            (sink.descriptor, select.POLLOUT)
            for sink in self.sinks.values()
            if sink.descriptor >= 0 and sink.pending
        ]
        for descriptor, events in wanted:
            interests[descriptor] = interests.get(descriptor, 0) | events
        return interests

    def _receive(self, events: int) -> None:
        try:
            data = os.read(self.link, 1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkClosedError from error
        if not data:
            raise LinkClosedError
        self._in += data
        offset = 0
        while len(self._in) - offset >= HEADER.size:
            kind, channel, length = HEADER.unpack_from(self._in, offset)
            end = offset + HEADER.size + length
            if len(self._in) < end:
                break
            payload = bytes(self._in[offset + HEADER.size : end])
            offset = end
            self._dispatch(kind, channel, payload)
        del self._in[:offset]

    def _dispatch(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == DATA:
            self._deliver(channel, payload)
        elif kind == EOF:
            sink = self.sinks.get(channel)
            if sink is not None:
                sink.ended = True
                self._maybe_finish(channel, sink)
        elif kind == ACK:
            source = self.sources.get(channel)
            if source is not None:
                source.credit += int.from_bytes(payload, "little")
        else:
            self.on_frame(kind, channel, payload)

    def _deliver(self, channel: int, payload: bytes) -> None:
        sink = self.sinks.get(channel)
        if sink is not None and sink.descriptor >= 0:
            sink.pending += payload
            return
        if sink is not None:
            sink.collected += payload
        self._acknowledge(channel, len(payload))

    def _acknowledge(self, channel: int, size: int) -> None:
        self.send(ACK, channel, size.to_bytes(4, "little"))

    def _write_sinks(self, ready: dict[int, int]) -> None:
        for channel, sink in list(self.sinks.items()):
            if sink.pending and sink.descriptor in ready:
                self._acknowledge(channel, sink.write())
                self._maybe_finish(channel, sink)

    def _maybe_finish(self, channel: int, sink: Sink) -> None:
        if sink.ended and not sink.pending:
            if sink.descriptor >= 0:
                self.close_channel(channel)
            self.on_end(channel)

    def _read_sources(self, ready: dict[int, int]) -> None:
        for channel, source in list(self.sources.items()):
            if source.credit <= 0 or (source.descriptor >= 0 and source.descriptor not in ready):
                continue
            try:
                data = source.read()
            except BlockingIOError:
                continue
            if data:
                source.credit -= len(data)
                self.send(DATA, channel, data)
            else:
                self._end(channel)
                self.on_end(channel)

    def _end(self, channel: int) -> None:
        self.send(EOF, channel)
        source = self.sources.pop(channel, None)
        if source is not None:
            source.close()

    def _transmit(self) -> None:
        while self._out:
            try:
                done = os.write(self.link, bytes(self._out[: 1 << 16]))
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkClosedError from error
            del self._out[:done]
