"""A writer of EROFS images (Linux: fs/erofs/erofs_fs.h): uncompressed, every file on whole blocks.

Uncompressed is right here: the reader is an emulated CPU, the file lies in the page cache, and disk
space is cheap.  The image depends on nothing but what was added: no times, no owners.
"""

from __future__ import annotations

import os
import stat
import struct

BLOCK = 4096
_BLOCK_BITS = 12
_MAGIC = 0xE0F5E1E2
_SUPER_OFFSET = 1024
# magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time, build_time_nsec,
# blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, then reserved
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sI44x")
# i_format, i_xattr_icount, i_mode, reserved, i_size, raw_blkaddr, i_ino, i_uid, i_gid, i_mtime,
# i_mtime_nsec, i_nlink, then reserved
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_EXTENDED_PLAIN = 1  # i_format: extended inode, EROFS_INODE_FLAT_PLAIN
_SLOT = 32  # a nid counts these
_DIRENT = struct.Struct("<QHBB")
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}


class _Node:
    """One inode: a directory has ``entries``, a link ``data``, a file ``data`` or a ``source`` path."""

    __slots__ = ("block", "data", "entries", "mode", "number", "size", "source")

    def __init__(self, mode: int, data: bytes = b"", source: str = "", size: int = 0) -> None:
        self.mode = mode
        self.data = data
        self.source = source
        self.size = size or len(data)
        self.entries: dict[bytes, _Node] = {}
        self.number = 0
        self.block = 0

    @property
    def nid(self) -> int:
        return (BLOCK + self.number * _INODE.size) // _SLOT


class Image:
    """An image to be: paths are relative, missing parents are made, a later file replaces an earlier one."""

    def __init__(self) -> None:
        self._root = _Node(stat.S_IFDIR | 0o755)

    def __contains__(self, path: str) -> bool:
        return self._find(path) is not None

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._directory(path).mode = stat.S_IFDIR | mode

    def bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A file with these contents."""
        self._put(path, _Node(stat.S_IFREG | mode, data))

    def file(self, path: str, source: str, mode: int | None = None) -> None:
        """The file ``source`` of this machine, read when the image is written."""
        found = os.stat(source)
        self._put(
            path,
            _Node(
                stat.S_IFREG | (found.st_mode & 0o777 if mode is None else mode),
                source=source,
                size=found.st_size,
            ),
        )

    def symlink(self, path: str, target: str) -> None:
        self._put(path, _Node(stat.S_IFLNK | 0o777, target.encode()))

    def tree(self, path: str, source: str, skip: tuple[str, ...] = ()) -> None:
        """Everything under ``source`` but the paths in ``skip`` (relative to it) and device nodes."""
        with os.scandir(source) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name in skip:
                    continue
                below = tuple(s.partition("/")[2] for s in skip if s.startswith(entry.name + "/"))
                to = f"{path}/{entry.name}" if path else entry.name
                if entry.is_symlink():
                    self.symlink(to, os.readlink(entry.path))
                elif entry.is_dir():
                    self.directory(to)
                    self.tree(to, entry.path, below)
                elif entry.is_file():
                    self.file(to, entry.path)

    def write(self, descriptor: int, size: int = 0) -> None:
        """Write the image to an empty file; ``size`` bytes long if that is more (the rest is a hole)."""
        nodes = self._numbered()
        blocks = self._place(nodes)
        os.truncate(descriptor, max(blocks * BLOCK, size))
        superblock = _SUPER.pack(
            _MAGIC,
            0,
            0,
            _BLOCK_BITS,
            0,
            self._root.nid,
            len(nodes),
            0,
            0,
            blocks,
            0,
            0,
            bytes(16),
            bytes(16),
            0,
        )
        os.pwrite(descriptor, superblock, _SUPER_OFFSET)
        os.pwrite(descriptor, b"".join(_inode(node) for node in nodes), BLOCK)
        for node in nodes:
            if node.source:
                _copy(node.source, descriptor, node.block * BLOCK, node.size)
            elif node.data:
                os.pwrite(descriptor, node.data, node.block * BLOCK)

    def _numbered(self) -> list[_Node]:
        """All nodes, the root first; directories get their contents once every number is known."""
        nodes = [self._root]
        parents = {id(self._root): self._root}
        for node in nodes:  # grows while it is walked
            for child in node.entries.values():
                child.number = len(nodes)
                nodes.append(child)
                parents[id(child)] = node
        for node in nodes:
            if stat.S_ISDIR(node.mode):
                node.data = _directory_data(node, parents[id(node)])
                node.size = len(node.data)
        return nodes

    @staticmethod
    def _place(nodes: list[_Node]) -> int:
        """Give every node its first block; the number of blocks in all."""
        block = 1 + -(-len(nodes) * _INODE.size // BLOCK)
        for node in nodes:
            node.block = block
            block += -(-node.size // BLOCK)
        return block

    def _find(self, path: str) -> _Node | None:
        node: _Node | None = self._root
        for name in path.encode().split(b"/"):
            node = node.entries.get(name) if node is not None else None
        return node

    def _directory(self, path: str) -> _Node:
        node = self._root
        for name in filter(None, path.encode().split(b"/")):
            child = node.entries.get(name)
            if child is None or not stat.S_ISDIR(child.mode):
                child = node.entries[name] = _Node(stat.S_IFDIR | 0o755)
            node = child
        return node

    def _put(self, path: str, node: _Node) -> None:
        parent, _, name = path.rpartition("/")
        self._directory(parent).entries[name.encode()] = node


def _inode(node: _Node) -> bytes:
    links = 2 if stat.S_ISDIR(node.mode) else 1
    return _INODE.pack(
        _EXTENDED_PLAIN, 0, node.mode, 0, node.size, node.block, node.number + 1, 0, 0, 0, 0, links
    )


def _directory_data(node: _Node, parent: _Node) -> bytes:
    """Blocks of entries, each followed by their names; sorted by name throughout, for the binary search."""
    entries = sorted({b".": node, b"..": parent, **node.entries}.items())
    blocks = []
    start = 0
    while start < len(entries):
        end, used = start, 0
        while end < len(entries) and used + _DIRENT.size + len(entries[end][0]) <= BLOCK:
            used += _DIRENT.size + len(entries[end][0])
            end += 1
        blocks.append(_directory_block(entries[start:end]))
        start = end
    return b"".join(block.ljust(BLOCK, b"\0") for block in blocks[:-1]) + blocks[-1]


def _directory_block(entries: list[tuple[bytes, _Node]]) -> bytes:
    offset = len(entries) * _DIRENT.size
    head = []
    for name, node in entries:
        head.append(_DIRENT.pack(node.nid, offset, _TYPES[stat.S_IFMT(node.mode)], 0))
        offset += len(name)
    return b"".join(head) + b"".join(name for name, _ in entries)


def _copy(source: str, descriptor: int, offset: int, size: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    with open(source, "rb", buffering=0) as file:
        done = 0
        while done < size:
            sent = os.sendfile(descriptor, file.fileno(), done, size - done)
            if not sent:
                raise OSError(f"{source} became shorter while it was read")
            done += sent
