"""vhost-user messages as data: no socket, no session (QEMU, docs/interop/vhost-user.rst).

    header   id u32, flags u32, payload size u32     native byte order
    payload  at most MAX_PAYLOAD bytes here
    fds      beside the message, by SCM_RIGHTS

Threat note: the back end is another program and may be anything.  What it sends is checked here: the
version, the id and the size against the question, the number of descriptors.  A descriptor that nobody
asked for is closed, and the connection ends.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nemu.errors import HostError

if TYPE_CHECKING:
    from nemu.memory import Region

VERSION, VERSION_MASK = 1, 3
FLAG_REPLY, FLAG_NEED_REPLY = 4, 8
MAX_PAYLOAD = 4096
MAX_FDS = 8  # in one message ("Communication")
MAX_REGIONS = 8  # in one SET_MEM_TABLE
MAX_CONFIG = 256

# "Front-end message types"
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE, GET_MAX_MEM_SLOTS, ADD_MEM_REG = 31, 32, 34, 36, 37
# "Back-end message types"
BACKEND_CONFIG_CHANGE = 2

F_PROTOCOL_FEATURES = 1 << 30  # of the virtio feature bits
# "Protocol features"
P_MQ, P_REPLY_ACK, P_BACKEND_REQ, P_CONFIG = 1 << 0, 1 << 3, 1 << 5, 1 << 9
P_INFLIGHT_SHMFD, P_RESET_DEVICE, P_CONFIGURE_MEM_SLOTS = 1 << 12, 1 << 13, 1 << 15

HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDRESS = struct.Struct("=IIQQQQ")  # index, flags, descriptor, used, available, log
_REGION = struct.Struct("=QQQQ")  # guest address, size, user address, mmap offset
_CONFIG = struct.Struct("=III")  # offset, size, flags
_INFLIGHT = struct.Struct("=QQHH4x")  # mmap size, mmap offset, queues, queue size; padded as the C structure
_NO_FD = 1 << 8  # of the payload of SET_VRING_KICK, CALL and ERR


class BackendError(HostError):
    """The back end is lost, silent, refuses, or does not speak the protocol."""


class Request(NamedTuple):
    """A message to the back end.  ``answers`` are the payload sizes that its reply may have, with
    ``answer_fds`` descriptors; without any there is none, but an acknowledgement when that is negotiated."""

    id: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()
    answer_fds: int = 0

    def encode(self, *, need_reply: bool = False) -> bytes:
        flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
        return HEADER.pack(self.id, flags, len(self.payload)) + self.payload


class Message(NamedTuple):
    """A whole message from the back end; whoever takes it owns ``fds``."""

    id: int
    flags: int
    payload: bytes
    fds: tuple[int, ...]


class Inbox:
    """Cuts what was received into messages."""

    def __init__(self) -> None:
        self._data = b""
        self._fds: list[int] = []

    def add(self, data: bytes, fds: Sequence[int]) -> None:
        """Bytes in their order, and the descriptors that came with them.  Raises BackendError."""
        self._data += data
        self._fds += fds
        if len(self._fds) > MAX_FDS:
            raise BackendError(f"sends more than {MAX_FDS} descriptors")

    def next(self) -> Message | None:
        """The next message, None until one is whole.  Raises BackendError for what cannot be one."""
        if len(self._data) < HEADER.size:
            return None
        number, flags, size = HEADER.unpack_from(self._data)
        if flags & VERSION_MASK != VERSION or size > MAX_PAYLOAD:
            raise BackendError(f"sends garbage (message {number}, flags {flags:#x}, {size} bytes)")
        end = HEADER.size + size
        if len(self._data) < end:
            return None
        message = Message(number, flags, self._data[HEADER.size : end], tuple(self._fds))
        self._data = self._data[end:]
        self._fds.clear()
        return message

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        close_all(self._fds)
        self._fds.clear()


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def check_reply(request: Request, message: Message) -> Message:
    """``message``, if it can be the reply to ``request``; else its descriptors are closed and BackendError
    is raised."""
    sizes = request.answers or (_U64.size,)
    if (
        message.id == request.id
        and message.flags & FLAG_REPLY
        and len(message.payload) in sizes
        and len(message.fds) == request.answer_fds
    ):
        return message
    close_all(message.fds)
    raise BackendError(
        f"answers message {request.id} by message {message.id} of {len(message.payload)} bytes with "
        f"{len(message.fds)} descriptors"
    )


# --- requests ---------------------------------------------------------------------------------


def ask(number: int) -> Request:
    """A request for a number."""
    return Request(number, answers=(_U64.size,))


def u64(number: int, value: int) -> Request:
    return Request(number, _U64.pack(value))


def state(number: int, index: int, value: int) -> Request:
    """A request about ring ``index``."""
    answers = (_STATE.size,) if number == GET_VRING_BASE else ()
    return Request(number, _STATE.pack(index, value), answers=answers)


def ring_addresses(index: int, desc: int, avail: int, used: int) -> Request:
    """User addresses, as the memory table has them."""
    return Request(SET_VRING_ADDR, _ADDRESS.pack(index, 0, desc, used, avail, 0))


def ring_fd(number: int, index: int, fd: int) -> Request:
    """The eventfd ``fd`` of ring ``index``, -1 for none."""
    if fd < 0:
        return Request(number, _U64.pack(index | _NO_FD))
    return Request(number, _U64.pack(index), (fd,))


def memory_table(regions: Sequence[Region]) -> Request:
    """At most MAX_REGIONS."""
    payload = _STATE.pack(len(regions), 0) + b"".join(map(_region, regions))
    return Request(SET_MEM_TABLE, payload, tuple(region.fd for region in regions))


def add_region(region: Region) -> Request:
    return Request(ADD_MEM_REG, _U64.pack(0) + _region(region), (region.fd,))


def user_address(gpa: int) -> int:
    """What the back end takes for our address of ``gpa``.

    It is a key into the memory table and need not be an address.  The guest-physical one tells a back end
    nothing about our address space, and is the same in the machine after a reboot: libvhost-user translates
    the rings that it knows at each new table, and gives up if one is not in it.
    """
    return gpa


def _region(region: Region) -> bytes:
    return _REGION.pack(region.gpa, region.size, user_address(region.gpa), region.offset)


def get_config(size: int) -> Request:
    """The first ``size`` bytes of the configuration space.  A reply without them is a refusal."""
    payload = _CONFIG.pack(0, size, 0) + bytes(size)
    return Request(GET_CONFIG, payload, answers=(len(payload), _CONFIG.size, 0))


def set_config(offset: int, data: bytes) -> Request:
    return Request(SET_CONFIG, _CONFIG.pack(offset, len(data), 0) + data)


def get_inflight(queues: int, queue_size: int) -> Request:
    payload = _INFLIGHT.pack(0, 0, queues, queue_size)
    return Request(GET_INFLIGHT_FD, payload, answers=(_INFLIGHT.size,), answer_fds=1)


class Inflight(NamedTuple):
    """The back end's record of requests in flight: kept for the next back end, and never looked into."""

    fd: int
    payload: bytes


def set_inflight(area: Inflight) -> Request:
    return Request(SET_INFLIGHT_FD, area.payload, (area.fd,))


# --- replies ----------------------------------------------------------------------------------


def number(reply: Message) -> int:
    (value,) = _U64.unpack(reply.payload)
    return int(value)


def ring_base(reply: Message, index: int) -> int:
    """The index in the available ring.  Raises BackendError unless it is one, and about ring ``index``."""
    found, value = _STATE.unpack(reply.payload)
    if found != index or value > 0xFFFF:
        raise BackendError(f"says that ring {found}, asked for ring {index}, is at {value}")
    return int(value)


def config(reply: Message, size: int) -> bytes | None:
    """``size`` bytes of configuration, None when it refuses.  Raises BackendError for a wrong answer."""
    if len(reply.payload) <= _CONFIG.size:
        return None
    offset, length, _ = _CONFIG.unpack_from(reply.payload)
    if (offset, length) != (0, size):
        raise BackendError(f"gives {length} bytes of configuration at {offset}, asked for {size} at 0")
    return reply.payload[_CONFIG.size :]


def inflight(reply: Message, queues: int, queue_size: int) -> Inflight:
    """Owns the descriptor.  Raises BackendError, the descriptor closed, when it is not what was asked for."""
    size, offset, found_queues, found_size = _INFLIGHT.unpack(reply.payload)
    if size == 0 or (found_queues, found_size) != (queues, queue_size):
        close_all(reply.fds)
        raise BackendError(f"gives {size} bytes to track {found_queues} queues of {found_size}")
    return Inflight(reply.fds[0], _INFLIGHT.pack(size, offset, queues, queue_size))


def acknowledged(request: Request, reply: Message) -> None:
    """Raises BackendError when the back end refused ``request``."""
    if number(reply):
        raise BackendError(f"refuses message {request.id} ({number(reply)})")
