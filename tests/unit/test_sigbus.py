"""A mapped file that becomes shorter: whoever owns it is told, and this process lives."""

from __future__ import annotations

import subprocess
import sys
import textwrap

_PREPARE = """
import mmap, os, sys, threading
from nemu import sigbus
from nemu.memory import host_address
fd = os.memfd_create("file")
os.ftruncate(fd, 1 << 20)
mapping = mmap.mmap(fd, 1 << 20)
view = memoryview(mapping)
lost = []
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    source = _PREPARE + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_owner_is_told_and_the_access_goes_on() -> None:
    done = run(
        """
        sigbus.guard(host_address(mapping), 1 << 20, lambda: lost.append(1))
        os.ftruncate(fd, 4096)
        view[0] = 7
        assert not lost
        assert bytes(view[70000:70003]) == bytes(3) and len(lost) == 1
        thread = threading.Thread(target=lambda: view[300000:300004].__setitem__(slice(None), b"abcd"))
        thread.start()
        thread.join()
        assert len(lost) == 2 and bytes(view[300000:300004]) == b"abcd"
        print("alive")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_the_host_kernel_gives_an_error_and_no_signal() -> None:
    done = run(
        """
        sigbus.guard(host_address(mapping), 1 << 20, lambda: lost.append(1))
        os.ftruncate(fd, 0)
        try:
            os.pwritev(fd, [view[8192:8200]], 0)
        except OSError as error:
            print(error.strerror, lost)
        """
    )
    assert done.stdout == "Bad address []\n"


def test_memory_of_nobody_ends_the_process_as_before() -> None:
    guarded = run(
        """
        other = mmap.mmap(-1, 4096)
        sigbus.guard(host_address(other), 4096, lambda: print("not mine"))
        os.ftruncate(fd, 0)
        view[0]
        """
    )
    released = run(
        """
        sigbus.guard(host_address(mapping), 1 << 20, lambda: print("late"))
        sigbus.release(host_address(mapping))
        os.ftruncate(fd, 0)
        view[0]
        """
    )
    assert [(done.returncode, done.stdout) for done in (guarded, released)] == [(-7, "")] * 2
