"""Hearing of interfaces that go, on the real network of this host."""

from __future__ import annotations

import os
import select
import subprocess

from nemu.backends.links import LinkWatch
from unit.backends.test_tap import needs_tap

NAME = f"nemu{os.getpid() % 0xFFFFFF:x}l"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@needs_tap
def test_only_the_end_of_an_interface_is_heard() -> None:
    watch = LinkWatch()
    ip("tuntap", "add", NAME, "mode", "tap")
    ip("link", "set", NAME, "up")
    assert select.select([watch], [], [], 0)[0] == []
    ip("link", "delete", NAME)
    assert select.select([watch], [], [], 5)[0] == [watch]
    watch.clear()
    assert select.select([watch], [], [], 0)[0] == []
    watch.close()
    watch.close()
