"""virtio-balloon: the host gets memory back, and the guest gets it again before it has to kill anything."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import Any

from functional.guest import arguments, script_text
from functional.inside import PATIENCE, Nemu
from functional.rig import Rig

MIB = 1 << 20
FILL = "mkdir -p /f; mount -t tmpfs -o size=90% tmpfs /f; dd if=/dev/zero of=/f/x bs=1M count={} 2>/dev/null"


def ram_taken(pid: int) -> int:
    """Bytes of the host that the guest's RAM takes, as the file system that holds it counts them."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        if "memfd:nemu-ram" in os.readlink(path):
            return os.stat(path).st_blocks * 512
    raise AssertionError("no guest RAM")


def least(pid: int, wanted: int) -> int:
    """What the guest's RAM takes, once it is ``wanted`` at most or did not get there in time."""
    deadline = time.monotonic() + PATIENCE
    while (taken := ram_taken(pid)) > wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return taken


def watch(argv: list[str], steps: Sequence[tuple[str, int]], report: str) -> dict[str, Any]:
    """Runs inside: at each of the guest's words, what its RAM takes, once that is as little as it says."""
    import json

    with Nemu(argv) as nemu:
        taken = {}
        for word, wanted in steps:
            nemu.expect(f"\n{word}\r?\n")
            taken[word] = least(nemu.pid, wanted)
            nemu.type("next\n")
        status = nemu.wait()
        with open(report, encoding="utf-8") as file:
            told = json.load(file)
        return {"status": status, "taken": taken, "shown": nemu.shown.decode(), "report": told}


def test_a_balloon_gives_memory_back_and_shrinks_before_a_process_dies(host: Rig) -> None:
    script = script_text(
        f"read_on() {{ echo; echo $1; read -r x; }}; {FILL.format(120)}; rm /f/x; read_on touched;"
        "modprobe virtio_balloon; read_on inflated;"
        # More than is left beside the balloon; without reporting, what was freed stays taken.
        "dd if=/dev/zero of=/f/x bs=1M count=150 2>&1 | grep -c 'records out'; ls -s /f/x; read_on survived;"
        "dmesg | grep -c 'Killed process'"
    )
    options = ["--memory", "256M", "--balloon", "128M,reporting=off,statistics=1"]
    argv = arguments(host, script, *options, report="/tmp/balloon.json")
    steps = [("touched", 0), ("inflated", 120 * MIB), ("survived", 1 << 40)]
    done = host.call_here(watch, argv=argv, steps=steps, report="/tmp/balloon.json", timeout=280)
    assert done["status"] == 0, done
    taken = done["taken"]
    assert taken["touched"] > 150 * MIB, "the guest has used it, so the host has given it"
    assert taken["inflated"] < 120 * MIB, taken
    assert taken["survived"] > taken["inflated"] + 64 * MIB
    assert re.search(
        r"\n0\s*\n#<end>|\n0\s*$", done["shown"].replace("\r", "").partition("nemu.status")[0]
    ), done["shown"]
    balloon = done["report"]["balloon"]
    assert balloon["target_bytes"] == 128 * MIB
    assert 128 * MIB < balloon["actual_bytes"] < 256 * MIB  # it took some back
    statistics = balloon["statistics"]
    assert 200 * MIB < statistics["total_memory"] < 256 * MIB
    assert 0 < statistics["free_memory"] < statistics["total_memory"]


def test_memory_that_a_guest_frees_goes_back_by_itself(host: Rig) -> None:
    script = script_text(
        f"read_on() {{ echo; echo $1; read -r x; }}; modprobe virtio_balloon; {FILL.format(200)}; read_on full;"
        "rm /f/x; read_on freed; dd if=/dev/zero of=/f/x bs=1M count=50 2>/dev/null; md5sum </f/x"
    )
    options = ["--memory", "320M", "--balloon", "on"]
    argv = arguments(host, script, *options, report="/tmp/reporting.json")
    steps = [("full", 0), ("freed", 110 * MIB)]
    done = host.call_here(watch, argv=argv, steps=steps, report="/tmp/reporting.json", timeout=280)
    assert done["status"] == 0, done
    assert done["taken"]["full"] > 220 * MIB
    assert done["taken"]["freed"] < done["taken"]["full"] - 160 * MIB, done["taken"]
    assert "25e317773f308e446cc84c503a6d1f85" in done["shown"]  # 50 MiB of zeroes
