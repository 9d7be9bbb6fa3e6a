"""Runs a tiny guest through ``nemu run`` and measures what it leaves behind.

Nothing here knows where it is: the same function serves the host that runs the tests and an emulated one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from nemu.arch.x86_64.cpuid import CpuModel
from nemu.kvm.handles import System
from tiny import devices
from tiny.cases import CASES, compile_case

TIME_LIMIT = 100  # seconds for one guest; they take one or two

# ``nemu run`` in a process that can count its own descriptors and threads before and after.
_INSIDE = """
import json, os, sys, time
from nemu import cli
def held():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
before = held()
status = cli.main(sys.argv[2:])
for _ in range(100):  # a joined thread is a task of the kernel for a moment longer
    if held() == before:
        break
    time.sleep(0.01)
result = {"status": status, "before": before, "after": held()}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
"""


def physical_bits() -> int:
    """The address bits of a guest here.  HostError without KVM."""
    system = System()
    try:
        return CpuModel(system, 1).physical_bits
    finally:
        system.close()


def run_case(name: str, seed: int) -> dict[str, Any]:
    """Run case ``name``; JSON values.

    ``status``, ``stderr``, ``console`` (bytes written there, as text), ``report`` (of --report, or None), and
    ``before``/``after``: (descriptors, threads) of the process around the run.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:

        def path(leaf: str) -> str:
            return os.path.join(folder, leaf)

        with open(path("guest"), "wb") as file:
            file.write(compile_case(name, seed, physical_bits()))
        with open(path("disk"), "wb") as file:
            file.write(devices.DISK_MAGIC.to_bytes(8, "little"))
            file.truncate(devices.DISK_SIZE)
        argv = [
            "run",
            "--host",
            "native",
            "--memory",
            "64M",
            "--kernel",
            path("guest"),
            "--disk",
            path("disk"),
        ]
        argv += [
            "--console",
            f"file={path('console')}",
            "--report",
            path("report"),
            "--timeout",
            str(TIME_LIMIT),
        ]
        done = subprocess.run(
            [sys.executable, "-c", _INSIDE, path("result"), *argv, *CASES[name].options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NEMU_DEBUG": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT + 60,
            check=False,
        )
        result = _load(path("result")) or {"status": done.returncode, "before": None, "after": None}
        console = ""
        if os.path.exists(path("console")):
            with open(path("console"), encoding="latin-1", newline="") as text:
                console = text.read()[-1000:]
        return {
            **result,
            "stderr": (done.stdout + done.stderr).decode("utf-8", "replace"),
            "console": console,
            "report": _load(path("report")),
        }


def _load(path: str) -> Any:
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def complaints(name: str, result: dict[str, Any], baseline_kib: int) -> list[str]:
    """What is wrong with ``result``; ``baseline_kib`` is the memory of the case "nothing".

    The one judgement for every host: pytest here, the functional tests in an emulated host.
    """
    chosen = CASES[name]
    found = []
    if result["status"] not in chosen.statuses:
        found.append(f"status {result['status']} is not in {chosen.statuses}")
    lines = result["stderr"].splitlines()
    ours = [line for line in lines if line.startswith("nemu: ")]
    if len(ours) != len(set(ours)) or (len(ours) < len(lines) and not chosen.last_words):
        found.append("more on standard error than one line for each thing that happened")
    if len(result["stderr"]) > STDERR_MAX or not all(line.isprintable() for line in lines):
        found.append("too much on standard error, or what a terminal would obey")
    devices_named = [line.split()[1] for line in ours if " stopped: " in line]
    if len(devices_named) > chosen.boots * len(set(devices_named)):
        found.append("a device was logged more than once")
    if result["before"] != result["after"] or result["before"] is None:
        found.append(f"descriptors and threads went from {result['before']} to {result['after']}")
    report = result["report"]
    if report is None:
        return [*found, "no report"]
    if report["reboots"] != chosen.boots - 1:
        found.append(f"{report['reboots']} reboots, not {chosen.boots - 1}")
    if report["memory"]["pss_kib"] > baseline_kib + GROWTH_KIB:
        found.append(f"memory grew from {baseline_kib} to {report['memory']['pss_kib']} KiB")
    if chosen.behaves and result["status"] == 0 and not result["console"].endswith("alive\n"):
        found.append("the console did not get its last line")
    return found


STDERR_MAX = 32 * 1024  # characters
# Counters of the report, caches of the interpreter and its allocator.
GROWTH_KIB = 6 * 1024
