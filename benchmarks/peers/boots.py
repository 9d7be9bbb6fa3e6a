"""Measures one boot of one machine.  Runs on the host that has the KVM: here, or in the emulated host."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nemu
from nemu.errors import HostError
from peers.machines import MACHINES, MEMORY, OURS, Guest
from peers.trace import Trace

MARK = b"init-at "  # then the guest's uptime in seconds
# What the small guest runs: its init has loaded the drivers of all four devices by then.
COMMAND = f"read -r up _ </proc/uptime; echo {MARK.decode()}$up; sleep 100000"
# An idle guest: Linux reads the entropy device every few seconds for ever, which is not idle.
IDLE_COMMAND = (
    "cd /sys/bus/virtio/drivers/virtio_rng && for one in virtio*; do echo $one >unbind; done; " + COMMAND
)
SETTLE = 2.0  # seconds from the mark to an idle guest
PATIENCE = 60.0  # seconds until a guest that has not come up is given up
TAP = "bench0"
DISK = 64 << 20  # bytes


@contextmanager
def backends() -> Iterator[tuple[str, str]]:
    """(disk image, tap) for the machines, gone afterwards.  Raises HostError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        disk = os.path.join(directory, "disk.img")
        with open(disk, "wb") as file:
            file.truncate(DISK)
        tap = f"{TAP}-{os.getpid() % 100000}"
        tap_device("add", tap)
        try:
            yield disk, tap
        finally:
            tap_device("del", tap)


def boot(name: str, guest: list[str], idle: float) -> dict[str, Any]:
    """Boot machine ``name`` with [kernel, initrd, append] until its guest idles.

    ``idle``: seconds for which the system calls of the idle VMM are counted (0: not).  Gives
    ``init_s`` and ``first_kvm_run_s`` from process start, ``uptime_s`` of the guest at its init, ``exits``
    by reason, ``pss_mib``; with ``idle`` ``idle_calls``; of ours ``report`` too.
    """
    with backends() as (disk, tap), Trace(exits=True) as trace, tempfile.TemporaryDirectory() as directory:
        argv = MACHINES[name](Guest(guest[0], guest[1], guest[2], disk, tap))
        report = os.path.join(directory, "report.json")
        argv += ["--report", report] if name == OURS else []
        with running(argv) as (process, start):
            figures = _until_init(process, start)
            figures["exits"] = trace.exits()
            first = trace.first_run()
            figures["first_kvm_run_s"] = first - start if first else None
            time.sleep(SETTLE)
            figures["pss_mib"] = memory_mib(process.pid)[1]
            if idle:
                figures["idle_calls"] = _idle_calls(process.pid, idle)
            if name == OURS:
                figures["report"] = _end_with_report(process, report)
        return figures


def first_run(name: str, guest: list[str]) -> float:
    """Seconds from process start to the first KVM_RUN of machine ``name``, which is killed then."""
    with backends() as (disk, tap), Trace() as trace:
        argv = MACHINES[name](Guest(guest[0], guest[1], guest[2], disk, tap))
        with running(argv) as (process, start):
            while (first := trace.first_run()) is None:
                if process.poll() is not None or time.monotonic() - start > PATIENCE:
                    raise HostError(f"{name} did not start its guest: {output(process)!r}")
                time.sleep(0.05)  # long, so that looking costs nothing that is measured
            return first - start


@contextmanager
def running(
    argv: list[str], stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A VMM, killed afterwards, and when it was started."""
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
    except FileNotFoundError as error:
        raise HostError(f"{argv[0]} is not installed (apt-get install qemu-system-x86)") from error
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        yield process, start
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _environment() -> dict[str, str]:
    """Ours runs from its tree, but with its byte code kept, as an installed program has it."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    source = os.path.dirname(os.path.dirname(nemu.__file__))
    if os.access(source, os.W_OK):  # the emulated host brings byte code with its read-only tree
        found["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), f"bench-bytecode-{os.getuid()}")
    return {**found, "PYTHONPATH": source}


def output(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.read() or b""


def until(process: subprocess.Popen[bytes], mark: bytes, patience: float = PATIENCE) -> tuple[float, bytes]:
    """(time.monotonic() when the guest had printed a line with ``mark``, the rest of the line).

    What else it printed until then is lost.  Raises HostError when it does not come.
    """
    assert process.stdout is not None
    deadline = time.monotonic() + patience
    printed = b""
    while True:
        select.select([process.stdout], [], [], 1.0)
        now = time.monotonic()
        printed += output(process)
        rest, end, _ = printed.partition(mark)[2].partition(b"\n")
        if end:
            return now, rest
        if process.poll() is not None or now > deadline:
            raise HostError(f"{process.args!r}: no guest came up; it printed {printed[-400:]!r}")


def _until_init(process: subprocess.Popen[bytes], start: float) -> dict[str, Any]:
    now, uptime = until(process, MARK)
    return {"init_s": now - start, "uptime_s": float(uptime)}


def memory_mib(pid: int, size: int = MEMORY) -> tuple[float, float]:
    """(guest RAM, all else): the process's proportional share in MiB.  RAM is its mapping of ``size`` MiB."""
    shares = [0.0, 0.0]
    is_ram = False
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            head, _, rest = line.partition(" ")
            if not head.endswith(":"):
                start, _, end = head.partition("-")
                is_ram = int(end, 16) - int(start, 16) >= size << 20
            elif head == "Pss:":
                shares[not is_ram] += int(rest.split()[0]) / 1024
    return shares[0], shares[1]


def _idle_calls(pid: int, seconds: float) -> int:
    """System calls of the process and its threads in ``seconds``; what attaching causes is not counted."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        argv = ["strace", "-f", "-ttt", "-o", log.name, "-p", str(pid)]
        strace = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(SETTLE)
        begin = time.time()
        time.sleep(seconds)
        end = time.time()
        strace.terminate()
        strace.wait()
        return sum(begin <= at < end for at in map(_timestamp, log) if at is not None)


def _timestamp(line: str) -> float | None:
    """Of the start of a system call in strace's log ("PID SECONDS call(...")."""
    words = line.split(maxsplit=2)
    if len(words) < 3 or words[2].startswith(("<...", "---", "+++", "strace:")):
        return None
    return float(words[1])


def _end_with_report(process: subprocess.Popen[bytes], path: str) -> dict[str, Any]:
    import json

    process.send_signal(signal.SIGTERM)  # the power button
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        output(process)
        time.sleep(0.05)
    with open(path, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def tap_device(verb: str, name: str) -> None:
    argv = ["ip", "tuntap", verb, "dev", name, "mode", "tap"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HostError("ip is not installed (apt-get install iproute2)") from error
    if done.returncode:
        raise HostError(f"cannot {verb} a tap: {done.stderr.strip()} (needs root)")
