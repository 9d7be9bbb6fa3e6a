"""What a program that shares a directory sees of the host's mounts.

It gets a mount namespace with a copy of the directory, and of all that is mounted below it, at PLACE.  That
copy can be read-only in the kernel's hands, whatever the program believes, and can be one of "/" as well.
Without root this takes a user namespace, in which this process's user is root and nobody else exists.
"""

from __future__ import annotations

import ctypes
import os
import struct

PLACE = "/tmp"  # there is one everywhere, and the program needs nothing in it
CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000  # linux/sched.h
MS_REC, MS_SLAVE, MNT_DETACH = 1 << 14, 1 << 19, 2  # linux/mount.h
# linux/fcntl.h, linux/mount.h, and the numbers of the calls, which are the same on every architecture
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, MOUNT_ATTR_RDONLY = 1, 4, 1
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
_ATTRIBUTES = struct.Struct("<QQQQ")  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
# What a machine shows of itself has no place in another one, and much of it would be a way back in.
_OF_THE_HOST = ("proc", "sys", "dev")

_libc = ctypes.CDLL(None, use_errno=True)


def show_alone(directory: str, *, readonly: bool) -> None:
    """Give this process, which has one thread, a namespace with ``directory`` at PLACE.  Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    if user:
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "make a user namespace")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    else:
        _check(_libc.unshare(CLONE_NEWNS), "make a mount namespace")
    # Nothing of this reaches the host, and what is unmounted there goes here too.
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "make mounts private")
    path = os.fsencode(directory)
    tree = _call(OPEN_TREE, AT_FDCWD, path, OPEN_TREE_CLONE | os.O_CLOEXEC | AT_RECURSIVE)
    _check(tree, f"share {directory}")
    if readonly:
        attributes = _ATTRIBUTES.pack(MOUNT_ATTR_RDONLY, 0, 0, 0)
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        done = _call(MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes))
        _check(done, f"share {directory} read-only")
    _check(
        _call(MOVE_MOUNT, tree, b"", AT_FDCWD, PLACE.encode(), MOVE_MOUNT_F_EMPTY_PATH), f"share {directory}"
    )
    os.close(tree)
    if os.path.realpath(directory) == "/":
        for name in _OF_THE_HOST:  # in a user namespace they stay, as the kernel keeps mounts together there
            _libc.umount2(f"{PLACE}/{name}".encode(), MNT_DETACH)


def _call(number: int, *arguments: int | bytes) -> int:
    typed = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *typed)
    return result


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
