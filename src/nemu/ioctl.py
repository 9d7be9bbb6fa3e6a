"""ioctl numbers as data, and the descriptors that take them (include/uapi/asm-generic/ioctl.h)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from ctypes import Structure, c_int, c_uint64, sizeof
from typing import Any

from nemu.errors import HostError

_WRITE, _READ = 1, 2  # from the caller's side

Argument = type[Structure] | type[c_int] | type[c_uint64]
Call = Callable[[int, int, Any], int]  # fcntl.ioctl, or what a test puts in its place


class Ioctl(int):
    """An ioctl number that knows its ``name`` for error messages."""

    name: str

    def __new__(cls, name: str, direction: int, family: int, number: int, size: int) -> Ioctl:
        self = super().__new__(cls, direction << 30 | size << 16 | family << 8 | number)
        self.name = name
        return self


class Family:
    """The ioctls of one driver, by the byte that they have in common."""

    def __init__(self, byte: int) -> None:
        self._byte = byte

    def io(self, name: str, number: int) -> Ioctl:
        return Ioctl(name, 0, self._byte, number, 0)

    def ior(self, name: str, number: int, argument: Argument) -> Ioctl:
        return Ioctl(name, _READ, self._byte, number, sizeof(argument))

    def iow(self, name: str, number: int, argument: Argument) -> Ioctl:
        return Ioctl(name, _WRITE, self._byte, number, sizeof(argument))

    def iowr(self, name: str, number: int, argument: Argument) -> Ioctl:
        return Ioctl(name, _READ | _WRITE, self._byte, number, sizeof(argument))


class Handle:
    """A descriptor, which it owns, and its ioctls."""

    def __init__(self, fd: int, ioctl: Call = fcntl.ioctl) -> None:
        self.fd = fd
        self._ioctl = ioctl

    def call(self, number: Ioctl, argument: Any = 0) -> int:
        """ioctl with an integer below 2^31 or a ctypes structure; the result, or HostError."""
        if self.fd < 0:
            raise HostError(f"{number.name}: the descriptor is closed")
        try:
            return int(self._ioctl(self.fd, number, argument))
        except OSError as error:
            raise HostError(f"{number.name}: {error.strerror}") from error

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def with_tail(header: type[Structure], entry: type[Structure], count: int) -> Any:
    """An instance of ``header`` followed by ``count`` of ``entry``, as ``.head`` and ``.entries``."""
    fields = [("head", header), ("entries", entry * count)]
    return type(header.__name__, (Structure,), {"_fields_": fields})()
