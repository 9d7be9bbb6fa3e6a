"""Where a ring goes on after its back end was lost: exactly there, or nowhere.

The driver has made A[0], A[1], ... available and has got back U[0], U[1], ... (heads of chains, by the 16-bit
indices of the rings).  A back end may complete requests in any order, so those that are still owed are in
general *not* A[used index:].  With a record of the requests in flight (INFLIGHT_SHMFD) the new back end finds
them itself, and starts from the used index.  Without one, going on is right when nothing is owed, or when
this kind of back end works in order.  The rings cannot prove an order (of an old request that is still owed
no trace is left in them), only disprove it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemu.interfaces import GuestMemory
    from nemu.virtio.queue import Queue


def indices(memory: GuestMemory, queue: Queue) -> tuple[int, int]:
    """The indices of the available and of the used ring."""
    return _u16(memory, queue.avail + 2), _u16(memory, queue.used + 2)


def base(memory: GuestMemory, queue: Queue, *, tracked: bool, in_order: bool) -> int | None:
    """The index in the available ring from which a new back end goes on, None where nobody can tell.

    ``tracked``: the new back end has the record of requests in flight.  ``in_order``: see above.
    """
    avail, used = indices(memory, queue)
    owed = (avail - used) & 0xFFFF
    if owed > queue.size:
        return None  # no driver does that
    if tracked or owed == 0 or (in_order and _looks_ordered(memory, queue, avail, used)):
        return used
    return None


def _looks_ordered(memory: GuestMemory, queue: Queue, avail: int, used: int) -> bool:
    """Whether nothing in the rings contradicts that requests were completed in their order."""
    owed = [_available(memory, queue, used + number) for number in range((avail - used) & 0xFFFF)]
    if len(set(owed)) < len(owed):
        return False
    # What is left of the past: a slot of the available ring is overwritten ``size`` entries later.
    return all(
        _available(memory, queue, index) == _used(memory, queue, index)
        for index in range(used + len(owed) - queue.size, used)
    )


def _available(memory: GuestMemory, queue: Queue, index: int) -> int:
    return _u16(memory, queue.avail + 4 + 2 * (index % queue.size))


def _used(memory: GuestMemory, queue: Queue, index: int) -> int:
    return int.from_bytes(memory.read(queue.used + 4 + 8 * (index % queue.size), 4), "little")


def _u16(memory: GuestMemory, address: int) -> int:
    return int.from_bytes(memory.read(address, 2), "little")
