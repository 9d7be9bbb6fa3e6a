"""Programs that nemu starts: what they inherit, what they say, and that they end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.loop import FakeLoop
from nemu.backends.child import STARTS, Child
from nemu.errors import HostError


def shell(script: str, *fds: int, loop: FakeLoop | None = None) -> Child:
    return Child("--test", ["sh", "-c", script], fds, loop or FakeLoop(), package="dash")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def ended(child: Child) -> bool:
    return bool(select.select([child.pidfd], [], [], 10)[0])


def test_it_gets_its_descriptors_from_3_on_and_no_other() -> None:
    first, second = os.memfd_create("first"), os.memfd_create("second")
    other = os.memfd_create("other")
    os.set_inheritable(other, True)
    child = shell("echo one >&3; echo two >&4; ls /proc/self/fd | tr '\\n' ' ' >&3", first, second)
    child.start()
    assert ended(child)
    child.close()
    assert os.pread(second, 100, 0) == b"two\n"
    # The last is the directory that ls reads.
    assert os.pread(first, 100, 0) == b"one\n0 1 2 3 4 5 "
    for fd in (first, second, other):
        os.close(fd)


def test_descriptors_do_not_overwrite_one_another() -> None:
    """3 and 4 the other way round."""
    fds = [os.memfd_create(str(number)) for number in range(40)]
    low = sorted(fds)[:2]
    child = shell("echo a >&3; echo b >&4", low[1], low[0])
    child.start()
    assert ended(child)
    child.close()
    assert [os.pread(fd, 10, 0) for fd in low] == [b"b\n", b"a\n"]
    for fd in fds:
        os.close(fd)


def test_signals_are_as_a_program_expects_them() -> None:
    out = os.memfd_create("out")
    child = shell("grep -E 'SigIgn|SigBlk' /proc/self/status >&3", out)
    child.start()
    assert ended(child)
    child.close()
    shown = [int(line.split()[1], 16) for line in os.pread(out, 200, 0).splitlines()]
    os.close(out)
    # 32 and 33 are the C library's own, which a program can neither set nor ask for.
    assert [mask & ~(3 << 31) for mask in shown] == [0, 0]


def test_its_last_words_are_kept_without_the_arguments_that_it_repeats() -> None:
    loop = FakeLoop()
    script = "echo first >&2; echo 'sh: --file a,b: is broken' >&2; echo 'Why? ' >&2; exit 1"
    child = Child("--test", ["sh", "-c", script, "--file", "a,b"], [], loop, package="dash")
    child.start()
    assert ended(child)
    loop.settle()
    assert child.last_words() == "sh: is broken Why?"
    child.close()


def test_what_it_says_is_bounded() -> None:
    loop = FakeLoop()
    child = shell("yes 'a long line of text' | head -c 3000000 >&2; echo end >&2", loop=loop)
    child.start()
    loop.until(lambda: bool(select.select([child.pidfd], [], [], 0)[0]), seconds=20)
    loop.settle()
    assert child.last_words() == "end"
    assert len(child._said) <= 4096
    child.close()
    assert loop.readers == {}


def test_a_missing_program_says_what_to_install() -> None:
    child = Child("--test x", ["nemu-no-such-program"], [], FakeLoop(), package="some-package")
    with pytest.raises(
        HostError, match="--test x: nemu-no-such-program is not installed; try: apt install some-package"
    ):
        child.start()
    child.close()


def test_one_that_ends_at_once_is_not_started_for_ever() -> None:
    child = shell("echo no way >&2; exit 1")
    for _ in range(STARTS):
        child.start()
        assert ended(child)
    with pytest.raises(HostError, match=r"sh has ended 5 times in a minute \(no way\)"):
        child.start()


def test_it_is_asked_to_end_and_then_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemu.backends.child.GRACE", 0.3)
    out = os.memfd_create("out")
    polite = shell("trap 'echo bye >&3; exit' TERM; echo up >&3; while :; do sleep 0.1; done", out)
    deaf = shell("trap '' TERM; echo up >&3; while :; do sleep 0.1; done", out)
    for number, child in enumerate((polite, deaf), 1):
        child.start()
        while os.pread(out, 100, 0).count(b"up") < number:
            time.sleep(0.01)
    polite.close()
    deaf.close()
    polite.close()
    assert os.pread(out, 100, 0) == b"up\nup\nbye\n"
    os.close(out)


_PARENT = """
import os, signal, sys
from fakes.loop import FakeLoop
from nemu.backends.child import Child
child = Child("--test", ["sleep", "1000"], [], FakeLoop(), package="coreutils")
child.start()
print(child._pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_does_not_survive_a_nemu_that_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _PARENT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    process = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 10
    while process.exists() and ") Z" not in process.joinpath("stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
