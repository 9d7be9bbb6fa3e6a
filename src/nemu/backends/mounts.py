"""What a program that shares a directory sees of the host's mounts.

It gets a mount namespace with a copy of the directory, and of all that is mounted below it, at PLACE.  That
copy can be read-only in the kernel's hands, whatever the program believes, and can be one of "/" as well.
Without root this takes a user namespace, in which this process's user is root and nobody else exists.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

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
    _enter_namespace()
    _attach(_copy(directory, readonly), PLACE)
    if os.path.realpath(directory) == "/":
        _hide_host(PLACE)


def show_numbered(directories: Sequence[tuple[str, bool]]) -> None:
    """The same with several (path, whether read-only), at PLACE/0, PLACE/1, ...  Raises OSError."""
    _enter_namespace()
    copies = [_copy(directory, readonly) for directory, readonly in directories]
    _check(_libc.mount(b"none", PLACE.encode(), b"tmpfs", 0, b"mode=755"), "mount a tmpfs")
    for number, ((directory, _), copy) in enumerate(zip(directories, copies, strict=True)):
        place = f"{PLACE}/{number}"
        os.mkdir(place)
        _attach(copy, place)
        if os.path.realpath(directory) == "/":
            _hide_host(place)


def _enter_namespace() -> None:
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


def _copy(directory: str, readonly: bool) -> int:
    """A descriptor of a copy of the mounts at and below ``directory``."""
    tree = _call(OPEN_TREE, AT_FDCWD, os.fsencode(directory), OPEN_TREE_CLONE | os.O_CLOEXEC | AT_RECURSIVE)
    _check(tree, f"share {directory}")
    if readonly:
        attributes = _ATTRIBUTES.pack(MOUNT_ATTR_RDONLY, 0, 0, 0)
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        done = _call(MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes))
        _check(done, f"share {directory} read-only")
    return tree


def _attach(tree: int, place: str) -> None:
    moved = _call(MOVE_MOUNT, tree, b"", AT_FDCWD, place.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    _check(moved, f"mount at {place}")
    os.close(tree)


def _hide_host(root: str) -> None:
    for name in _OF_THE_HOST:  # in a user namespace they stay, as the kernel keeps mounts together there
        _libc.umount2(f"{root}/{name}".encode(), MNT_DETACH)


def _call(number: int, *arguments: int | bytes) -> int:
    typed = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *typed)
    return result


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
