"""The header of a virtio socket packet (virtio 1.2, section 5.10.6)."""

from __future__ import annotations

import struct
from typing import NamedTuple

HOST_CID = 2  # 5.10.4: the well-known address of the host

# 5.10.6: types, operations, flags of SHUTDOWN
TYPE_STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # the sender will receive, send no more

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = _HEADER.size  # 44
_U32 = 0xFFFF_FFFF


class Header(NamedTuple):
    """All fields in their order.  ``length`` is of the data behind the header, in bytes."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0  # bytes of the sender's receive buffer
    fwd_cnt: int = 0  # bytes that have left it so far, modulo 2**32

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """From HEADER_SIZE bytes."""
        return cls._make(_HEADER.unpack(data))

    def pack(self) -> bytes:
        return _HEADER.pack(*self)

    def refusal(self) -> Header:
        """The reset that answers this packet (5.10.6.4)."""
        return Header(self.dst_cid, self.src_cid, self.dst_port, self.src_port, 0, self.type, RST)


class Credit:
    """How much the peer can take, by its own words (5.10.6.3).  Counters are modulo 2**32."""

    def __init__(self) -> None:
        self._sent = 0
        self._allocated = 0
        self._forwarded = 0

    def hear(self, header: Header) -> None:
        """Every packet of a connection tells."""
        self._allocated, self._forwarded = header.buf_alloc, header.fwd_cnt

    def use(self, count: int) -> None:
        self._sent = (self._sent + count) & _U32

    @property
    def room(self) -> int:
        """Bytes that may be sent now; none to a peer whose numbers make no sense."""
        return max(0, self._allocated - ((self._sent - self._forwarded) & _U32))
