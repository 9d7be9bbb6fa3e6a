"""Open files that a client hands over with a message."""

from __future__ import annotations

import os
from typing import Annotated, NamedTuple

from nemu.qmp.errors import QmpError
from nemu.qmp.registry import Call, command


class FdName(NamedTuple):
    fdname: Annotated[str, "the name; it does not begin with a digit"]


class AddFd(NamedTuple):
    fdset_id: Annotated[int | None, "the set; without it, a new one"] = None
    opaque: Annotated[str | None, "a word about it, for query-fdsets"] = None


class AddedFd(NamedTuple):
    """AddfdInfo."""

    fdset_id: Annotated[int, "the set"]
    fd: Annotated[int, "its number in nemu"]


class RemoveFd(NamedTuple):
    fdset_id: Annotated[int, "the set"]
    fd: Annotated[int | None, "only this one of it"] = None


class FdInfo(NamedTuple):
    """FdsetFdInfo."""

    fd: Annotated[int, "its number in nemu"]
    opaque: Annotated[str | None, "the word about it"] = None


class FdsetInfo(NamedTuple):
    fdset_id: Annotated[int, "the set"]
    fds: Annotated[list[FdInfo], "what is in it"]


@command("getfd")
def getfd(call: Call, arguments: FdName) -> None:
    """Keep the descriptor that came with this command under a name, until the client leaves."""
    call.connection.inbox.name(arguments.fdname)


@command("closefd")
def closefd(call: Call, arguments: FdName) -> None:
    """Close a descriptor that has a name."""
    os.close(call.connection.inbox.take_named(arguments.fdname))


@command("add-fd")
def add_fd(call: Call, arguments: AddFd) -> AddedFd:
    """Put the descriptor that came with this command into a set, until the last client leaves."""
    fd = call.connection.inbox.take()
    try:
        return AddedFd(call.connection.server.sets.add(fd, arguments.fdset_id, arguments.opaque), fd)
    except QmpError:
        os.close(fd)
        raise


@command("remove-fd")
def remove_fd(call: Call, arguments: RemoveFd) -> None:
    """Close a descriptor of a set, or all of them."""
    call.connection.server.sets.remove(arguments.fdset_id, arguments.fd)


@command("query-fdsets")
def query_fdsets(call: Call) -> list[FdsetInfo]:
    """The sets of descriptors."""
    sets = sorted(call.connection.server.sets.sets.items())
    return [FdsetInfo(number, [FdInfo(*one) for one in members]) for number, members in sets]
