"""virtio-balloon: memory that the guest does not need goes back to the host (virtio 1.2, section 5.5).

Two ways: the balloon, which the host blows up (``Balloon.set_target``), and free page reporting, by which
the guest tells of memory that happens to be free.  Either way holes are punched into guest RAM; the
guest takes a page back just by touching it, which gives it zeroes.

Threat note: a guest names any address, in any number, as often as it likes.  GuestRam.discard throws only
RAM away, never a file of the user's; what is nowhere stops the device.  A page that is in use can be
named as well: that guest loses its own data.  The work of one turn of the loop is bounded by _TURN,
whatever a request holds; of requests that wait there are no more than a queue has entries.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from nemu import iovec
from nemu.balloon import PAGE_SIZE, Balloon
from nemu.errors import GuestError
from nemu.interfaces import EventLoop, Timer
from nemu.virtio.device import Transport, VirtioDevice, again, drain
from nemu.virtio.queue import Chain, Queue

# 5.5.3 feature bits
F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_PAGE_POISON = 1 << 4
F_REPORTING = 1 << 5

# 5.5.4: num_pages, actual, free_page_hint_cmd_id, poison_val
_CONFIG = struct.Struct("<IIII")
_ACTUAL, _POISON = 4, 12

_MAX_PFNS = 4096  # in one request; Linux sends 256 at most, Windows 1024
# Work of one turn: a system call for each range, and the pages in it.
_TURN = 256
_PAGES_PER_WORK = 64
_PIECE = 4 << 20  # bytes in one go

# 5.5.6.3.1; the last six are of Linux 6.12 (linux/virtio_balloon.h)
STATISTICS = (
    *("swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory"),
    *("available_memory", "disk_caches", "hugetlb_allocations", "hugetlb_failures"),
    *("oom_kills", "allocation_stalls", "async_scans", "direct_scans", "async_reclaims", "direct_reclaims"),
)
_STATISTIC = struct.Struct("<HQ")

Range = tuple[int, int]  # (gpa, bytes)


class Ram(Protocol):
    """Guest memory that can be thrown away (nemu.memory.GuestRam)."""

    def discard(self, gpa: int, length: int) -> None: ...

    def gpa(self, view: memoryview) -> int: ...


@dataclass(slots=True)
class _Reclaim:
    """A queue whose requests name memory to be given back, and the request at hand."""

    queue: Queue
    read: Callable[[Chain], Iterable[Range]]
    head: int = -1
    ranges: deque[Range] = field(default_factory=deque)

    def turn(self, ram: Ram) -> bool:
        """The work of one turn; True when there is more.  Raises GuestError."""
        self.queue.disable_notifications()
        work = 0
        while work < _TURN:
            if self.ranges:
                work += self._discard(ram)
            elif self.head >= 0:
                self.queue.push(self.head, 0)
                self.head = -1
                work += 1
            elif (chain := self.queue.pop()) is not None:
                self.head = chain.head
                self.ranges.extend(self.read(chain))
                work += iovec.size(chain.readable) // 4 // _PAGES_PER_WORK
            else:
                self.queue.flush()
                if not self.queue.enable_notifications():
                    return False
                self.queue.disable_notifications()
        self.queue.flush()
        return True

    def _discard(self, ram: Ram) -> int:
        gpa, length = self.ranges.popleft()
        if length > _PIECE:
            self.ranges.appendleft((gpa + _PIECE, length - _PIECE))
            length = _PIECE
        ram.discard(gpa, length)
        return 1 + length // PAGE_SIZE // _PAGES_PER_WORK


@dataclass(slots=True)
class _Active:
    """One activation.  ``reclaims`` are the queues by index."""

    transport: Transport
    reclaims: dict[int, _Reclaim]
    deflate: Queue | None
    stats: Queue | None
    held: int = -1  # the statistics buffer, which goes back to ask for new ones
    resuming: set[int] = field(default_factory=set)  # queues that the loop comes back to by itself


class VirtioBalloon(VirtioDevice):
    """The device of ``balloon`` in a machine with ``ram``.

    ``interval`` is the time in seconds between two questions for statistics; 0: none.
    """

    device_id = 5
    # Inflate, deflate, statistics, and twice reporting: in the specification it is queue 4, but Linux counts
    # only queues that exist, and the one of free page hints does not.
    queue_sizes = (128, 128, 8, 128, 128)

    def __init__(
        self,
        name: str,
        balloon: Balloon,
        ram: Ram,
        loop: EventLoop,
        *,
        reporting: bool = True,
        deflate_on_oom: bool = True,
        interval: float = 0.0,
    ) -> None:
        super().__init__(name, _CONFIG.pack(balloon.pages, 0, 0, 0))
        self.features = F_STATS_VQ
        self.features |= F_REPORTING | F_PAGE_POISON if reporting else 0
        self.features |= F_DEFLATE_ON_OOM if deflate_on_oom else 0
        self._balloon = balloon
        self._ram = ram
        self._loop = loop
        self._interval = interval
        self._timer: Timer | None = None
        self._active: _Active | None = None
        balloon.attach(self)

    # --- Balloon's driver ---------------------------------------------------------------------

    def target_changed(self) -> None:
        struct.pack_into("<I", self.config, 0, self._balloon.pages)
        if self._active:
            self._active.transport.config_changed()

    def request_statistics(self) -> None:
        active = self._active
        if active and active.stats and active.held >= 0:
            active.stats.push(active.held, 0)
            active.held = -1
            active.stats.flush()

    # --- the device -----------------------------------------------------------------------------

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        inflate, deflate, *others = queues
        stats = others.pop(0) if features & F_STATS_VQ else None
        reclaims = {0: _Reclaim(inflate, _balloon_ranges)} if inflate else {}
        if features & F_REPORTING:
            for index in range(len(queues) - len(others), len(queues)):
                if queue := queues[index]:
                    reclaims[index] = _Reclaim(queue, self._reported_ranges)
        self._active = _Active(transport, reclaims, deflate, stats)
        # A new driver knows of no page in the balloon.  Not at the end of the old one: what a guest gave back
        # stays so when it only resets its devices, as Linux does before it powers off.
        struct.pack_into("<I", self.config, _ACTUAL, 0)
        self._balloon.inflated(0)
        if stats and self._interval:
            self._timer = self._loop.call_later(self._interval, self._tick)

    def notify(self, index: int) -> None:
        active = self._active
        if active is None or index in active.resuming:  # a driver that notifies in a loop gets no more turns
            return
        if reclaim := active.reclaims.get(index):
            more = reclaim.turn(self._ram)
        elif index == 1 and (deflate := active.deflate):
            more = drain(deflate, lambda chain: _give_back(deflate, chain))
        elif index == 2 and (stats := active.stats):
            more = drain(stats, lambda chain: self._learn(active, stats, chain))
        else:
            return
        if more:
            active.resuming.add(index)
            again(self._loop, active.transport, lambda: self._resume(active, index))

    def _resume(self, active: _Active, index: int) -> None:
        active.resuming.discard(index)
        if active is self._active:
            self.notify(index)

    def deactivate(self, done: Callable[[], None]) -> None:
        self._active = None
        if self._timer:
            self._timer.cancel()
            self._timer = None
        done()

    def write_config(self, offset: int, width: int, value: int) -> None:
        written = value.to_bytes(width, "little")
        for place, byte in enumerate(written, offset):
            if _ACTUAL <= place < _ACTUAL + 4 or _POISON <= place < _POISON + 4:
                self.config[place] = byte
        self._balloon.inflated(_CONFIG.unpack(self.config)[1])

    def _reported_ranges(self, chain: Chain) -> Iterator[Range]:
        """The whole pages of a report's buffers (5.5.6.7)."""
        if any(self.config[_POISON:]):
            return  # 5.5.6.6: such a guest finds a page corrupt that does not hold its pattern
        for view in chain.writable:
            gpa = self._ram.gpa(view)
            start, end = -(-gpa // PAGE_SIZE) * PAGE_SIZE, (gpa + len(view)) // PAGE_SIZE * PAGE_SIZE
            if start < end:
                yield start, end - start

    def _learn(self, active: _Active, queue: Queue, chain: Chain) -> bool:
        """Take statistics (5.5.6.3), and keep their buffer until new ones are asked for."""
        data = iovec.gather(chain.readable, _STATISTIC.size * len(STATISTICS))
        known = _STATISTIC.iter_unpack(data[: len(data) // _STATISTIC.size * _STATISTIC.size])
        if active.held >= 0:
            queue.push(active.held, 0)  # a driver has one buffer; of more the latest is kept
        active.held = chain.head
        self._balloon.learned({STATISTICS[tag]: value for tag, value in known if tag < len(STATISTICS)})
        return True

    def _tick(self) -> None:
        self.request_statistics()
        self._timer = self._loop.call_later(self._interval, self._tick)


def _balloon_ranges(chain: Chain) -> Iterator[Range]:
    """What an inflate request names by page numbers (5.5.6.1), in as few ranges as possible."""
    size = iovec.size(chain.readable)
    if size > 4 * _MAX_PFNS or size % 4:
        raise GuestError(f"a balloon request of {size} bytes, at most {4 * _MAX_PFNS} are allowed")
    pages = sorted({pfn for (pfn,) in struct.iter_unpack("<I", iovec.gather(chain.readable, size))})
    start = end = -1
    for page in pages:
        if page != end:
            if start >= 0:
                yield start * PAGE_SIZE, (end - start) * PAGE_SIZE
            start = page
        end = page + 1
    if start >= 0:
        yield start * PAGE_SIZE, (end - start) * PAGE_SIZE


def _give_back(queue: Queue, chain: Chain) -> bool:
    """The guest takes its pages out of the balloon: touching them is all that it needs."""
    queue.push(chain.head, 0)
    return True
