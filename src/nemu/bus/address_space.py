"""An interval map from addresses to device windows, for memory-mapped and for port I/O.

Called with the machine lock held.  Every access that reaches this module is counted by
register, because "how often does the guest leave the kernel" is a figure of the product.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nemu.interfaces import Doorbell, Pages, Window

# A guest chooses the addresses it touches: remember no more distinct ones than this.
MAX_COUNTED = 4096


class Backing(Protocol):
    """Who shows pages to the guest and rings doorbells (KVM; a fake in tests)."""

    def map_pages(self, pages: Pages, gpa: int) -> None: ...

    def unmap_pages(self, gpa: int) -> None: ...

    def ring(self, doorbell: Doorbell, gpa: int, *, assign: bool) -> None: ...


class AddressSpace:
    """Windows at addresses (interfaces.AddressBus).

    ``reserved`` are (start, size) ranges that no window may cover: RAM, and what the kernel decodes.
    Threat: a guest moves BARs anywhere, onto each other and onto RAM.  A window is decoded only
    while its whole range is free; one that is not waits and is tried again when another leaves.
    """

    def __init__(
        self, backing: Backing | None = None, reserved: tuple[tuple[int, int], ...] = (), bits: int = 64
    ) -> None:
        self._backing = backing
        self._reserved = reserved
        self._limit = 1 << bits
        self._starts: list[int] = []
        self._placed: list[tuple[int, Window]] = []
        self._waiting: dict[Window, int] = {}
        self._seen: dict[str, Window] = {}  # by name, for reports: every window that ever had an address
        self.counts: dict[tuple[str, int, bool], int] = {}
        self.unknown = 0

    # --- windows ----------------------------------------------------------------------

    def place(self, window: Window, gpa: int) -> None:
        self.withdraw(window)
        self._seen[window.name] = window
        if self._is_free(gpa, window.size):
            self._decode(window, gpa)
        else:
            self._waiting[window] = gpa

    def withdraw(self, window: Window) -> None:
        if self._waiting.pop(window, None) is not None:
            return
        for index, (gpa, placed) in enumerate(self._placed):
            if placed is window:
                self._replace(self._placed[:index] + self._placed[index + 1 :])
                self._unback(window, gpa)
                self._retry()
                return

    def _is_free(self, gpa: int, size: int) -> bool:
        taken = [*self._reserved, *((start, window.size) for start, window in self._placed)]
        return gpa + size <= self._limit and all(
            gpa + size <= start or start + length <= gpa for start, length in taken
        )

    def _decode(self, window: Window, gpa: int) -> None:
        self._replace(sorted([*self._placed, (gpa, window)], key=lambda item: item[0]))
        if self._backing is not None:
            if window.pages is not None:
                self._backing.map_pages(window.pages, gpa)
            for doorbell in window.doorbells:
                self._backing.ring(doorbell, gpa, assign=True)

    def _unback(self, window: Window, gpa: int) -> None:
        if self._backing is not None:
            for doorbell in window.doorbells:
                self._backing.ring(doorbell, gpa, assign=False)
            if window.pages is not None:
                self._backing.unmap_pages(gpa)

    def _retry(self) -> None:
        for window, gpa in list(self._waiting.items()):
            if self._is_free(gpa, window.size):
                del self._waiting[window]
                self._decode(window, gpa)

    def _replace(self, placed: list[tuple[int, Window]]) -> None:
        self._placed = placed
        self._starts = [gpa for gpa, _ in placed]

    # --- accesses -----------------------------------------------------------------------

    def find(self, address: int, width: int) -> tuple[Window, int] | None:
        """The window that holds the whole access, and the offset in it."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        start, window = self._placed[index]
        offset = address - start
        return (window, offset) if offset + width <= window.size else None

    def read(self, address: int, width: int) -> int:
        """``width`` bytes; all-ones where nothing answers."""
        found = self.find(address, width)
        self._count(found, address, is_write=False)
        if found is None:
            return (1 << 8 * width) - 1
        window, offset = found
        return window.handler.read(offset, width)

    def write(self, address: int, width: int, value: int) -> None:
        found = self.find(address, width)
        self._count(found, address, is_write=True)
        if found is not None:
            window, offset = found
            window.handler.write(offset, width, value)

    def _count(self, found: tuple[Window, int] | None, address: int, *, is_write: bool) -> None:
        if found is None:
            self.unknown += 1
            key = ("", address, is_write)
        else:
            key = (found[0].name, found[1], is_write)
        if key in self.counts or len(self.counts) < MAX_COUNTED:
            self.counts[key] = self.counts.get(key, 0) + 1

    def counts_by_register(self) -> dict[str, int]:
        """Accesses by name, e.g. ``{"virtio-rng0 queue_select write": 3}``, most frequent first."""
        named: dict[str, int] = {}
        for (owner, offset, is_write), count in self.counts.items():
            register = self._seen[owner].handler.register_name(offset) if owner else f"{offset:#x}"
            name = f"{owner or 'unknown'} {register} {'write' if is_write else 'read'}"
            named[name] = named.get(name, 0) + count
        return dict(sorted(named.items(), key=lambda item: -item[1]))
