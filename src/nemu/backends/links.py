"""Hear that a network interface of this host was deleted (rtnetlink(7)).

A data plane in the kernel keeps the loss of its tap to itself, and asking to be woken for the tap would
mean to be woken for each packet.
"""

from __future__ import annotations

import ctypes
import socket
import struct

RTM_DELLINK = 17  # linux/rtnetlink.h
RTMGRP_LINK = 1
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

# linux/filter.h: code, jump if true, jump if false, constant.  It loads in network byte order what the kernel
# wrote in this machine's: nlmsg_type, at offset 4.
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x28, 0, 0, 4),  # ldh [4]
        (0x15, 0, 1, socket.htons(RTM_DELLINK)),  # jeq, else skip one
        (0x06, 0, 0, 0xFFFF_FFFF),  # ret: take all of it
        (0x06, 0, 0, 0),  # ret: drop it
    )
)


class LinkWatch:
    """``fileno`` is readable when some interface is gone; nothing else on this host's network wakes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
        count = len(_FILTER) // 8
        # struct sock_fprog: the number of instructions, and where they are
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(program))
        )
        self._socket.bind((0, RTMGRP_LINK))

    def fileno(self) -> int:
        return self._socket.fileno()

    def clear(self) -> None:
        """Take the messages, of which the caller then looks what they mean to it."""
        try:
            while self._socket.recv(1):
                pass
        except OSError:  # no more, or some were lost, which does not matter
            return

    def close(self) -> None:
        self._socket.close()
