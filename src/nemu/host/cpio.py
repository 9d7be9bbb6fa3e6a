"""The initramfs archive format "newc" (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat


class Archive:
    """An archive in memory.  Paths are relative; a directory comes before what is in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._member(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._member(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        self._member(path, stat.S_IFLNK | 0o777, target.encode())

    def fifo(self, path: str, mode: int = 0o600) -> None:
        self._member(path, stat.S_IFIFO | mode, b"")

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o666) -> None:
        self._member(path, stat.S_IFCHR | mode, b"", (major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive with its trailer, a multiple of 4 bytes."""
        return b"".join(self._parts) + _record("TRAILER!!!", 0, 0, b"")

    def _member(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(_record(path, self._inode, mode, data, device))


def _record(path: str, inode: int, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    name = path.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
