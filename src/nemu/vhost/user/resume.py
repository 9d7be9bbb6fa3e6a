"""Where a ring goes on after its back end was lost: exactly there, or nowhere.

The driver has made A[0], A[1], ... available and has got back U[0], U[1], ... (heads of chains, by the 16-bit
indices of the rings).  A back end may complete requests in any order, so those that are still owed are in
general *not* A[used index:].  With a record of the requests in flight (INFLIGHT_SHMFD) the new back end finds
them itself, and starts from the used index.  Without one, going on from there is right when nothing was owed
as the old one ended, or when this kind of back end works in order.  The rings cannot prove an order (of an
old request that is still owed no trace is left in them), only disprove it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nemu.interfaces import GuestMemory
    from nemu.virtio.queue import Queue


class Indices(NamedTuple):
    """Of the available and of the used ring."""

    avail: int
    used: int


def indices(memory: GuestMemory, queue: Queue) -> Indices:
    return Indices(_u16(memory, queue.avail + 2), _u16(memory, queue.used + 2))


def owed(memory: GuestMemory, queue: Queue) -> int:
    """How many requests the driver has not got back."""
    avail, used = indices(memory, queue)
    return (avail - used) & 0xFFFF


def base(memory: GuestMemory, queue: Queue, *, known: bool, in_order: bool) -> int | None:
    """The index in the available ring from which a new back end goes on, None where nobody can tell.

    ``known``: there is a record of the requests in flight, or there were none.  ``in_order``: see above.
    """
    avail, used = indices(memory, queue)
    number = (avail - used) & 0xFFFF
    if number > queue.size:
        return None  # no driver does that
    if known or number == 0 or (in_order and _looks_ordered(memory, queue, used, number)):
        return used
    return None


def _looks_ordered(memory: GuestMemory, queue: Queue, used: int, number: int) -> bool:
    """Whether nothing in the rings contradicts that requests were completed in order, but for ``number``."""
    heads = {_available(memory, queue, index) for index in range(used, used + number)}
    if len(heads) < number:
        return False
    # What is left of the past: a slot of the available ring is overwritten ``size`` entries later.
    return all(
        _available(memory, queue, index) == _used(memory, queue, index)
        for index in range(used + number - queue.size, used)
    )


def _available(memory: GuestMemory, queue: Queue, index: int) -> int:
    return _u16(memory, queue.avail + 4 + 2 * (index % queue.size))


def _used(memory: GuestMemory, queue: Queue, index: int) -> int:
    return int.from_bytes(memory.read(queue.used + 4 + 8 * (index % queue.size), 4), "little")


def _u16(memory: GuestMemory, address: int) -> int:
    return int.from_bytes(memory.read(address, 2), "little")
