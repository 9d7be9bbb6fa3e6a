"""The bus and what is behind it, as records of what they were told."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemu.interfaces import Doorbell, Pages, Window


@dataclass
class FakeHandler:
    """A BusHandler that remembers its calls; a read gives ``value``."""

    value: int = 0
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def read(self, offset: int, width: int) -> int:
        self.calls.append(("read", offset, width))
        return self.value & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        self.calls.append(("write", offset, width, value))

    def register_name(self, offset: int) -> str:
        return f"reg{offset:#x}"


class FakeBus:
    """Implements interfaces.AddressBus; ``placed`` is where each window is."""

    def __init__(self) -> None:
        self.placed: dict[Window, int] = {}
        self.moves: list[tuple[str, int | None]] = []

    def place(self, window: Window, gpa: int) -> None:
        self.placed[window] = gpa
        self.moves.append((window.name, gpa))

    def withdraw(self, window: Window) -> None:
        self.placed.pop(window, None)
        self.moves.append((window.name, None))


class FakeBacking:
    """Implements bus.address_space.Backing as strictly as KVM does: nothing may overlap or be missing."""

    def __init__(self) -> None:
        self.slots: dict[int, Pages] = {}
        self.doorbells: dict[int, int] = {}

    def map_pages(self, pages: Pages, gpa: int) -> None:
        for start, other in self.slots.items():
            assert gpa + pages.size <= start or start + other.size <= gpa, "memory slots overlap"
        self.slots[gpa] = pages

    def unmap_pages(self, gpa: int) -> None:
        del self.slots[gpa]

    def ring(self, doorbell: Doorbell, gpa: int, *, assign: bool) -> None:
        address = gpa + doorbell.offset
        if assign:
            assert address not in self.doorbells, "two doorbells at one address"
            self.doorbells[address] = doorbell.eventfd
        else:
            assert self.doorbells.pop(address) == doorbell.eventfd
