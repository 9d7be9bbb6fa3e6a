"""What every device test needs: RAM, a loop, a transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.driver import RAM_SIZE, FakeTransport
from fakes.loop import FakeLoop
from nemu.memory import GuestRam


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    memory = GuestRam([(0, RAM_SIZE)])
    yield memory
    memory.close()


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()
