"""Guest RAM of 64 MiB, and files that hold an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemu.memory import GuestRam

RAM_SIZE = 64 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    memory = GuestRam([(0, RAM_SIZE)])
    yield memory
    memory.close()


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], str]:
    """Write the bytes to a file and give its path."""

    def write(data: bytes, name: str = "vmlinuz") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write
