"""virtio-balloon: the host gets memory back, and the guest gets it again before it has to kill anything."""

from __future__ import annotations

import hashlib
import json
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
    with Nemu(argv) as nemu:
        taken = {}
        for word, wanted in steps:
            nemu.expect(f"\n{word}\r?\n", patience=4 * PATIENCE)
            taken[word] = least(nemu.pid, wanted)
            nemu.type("next\n")
        status = nemu.wait()
        with open(report, encoding="utf-8") as file:
            told = json.load(file)
        return {"status": status, "taken": taken, "shown": nemu.shown.decode(), "report": told}


def run(host: Rig, commands: str, steps: Sequence[tuple[str, int]], *options: str) -> dict[str, Any]:
    script = script_text(f"say() {{ echo; echo $1; read -r x; }}; {commands}")
    argv = arguments(host, script, *options, report="/tmp/balloon.json")
    done: dict[str, Any] = host.call_here(
        watch, argv=argv, steps=steps, report="/tmp/balloon.json", timeout=290
    )
    assert done["status"] == 0, done
    return done


def test_a_balloon_gives_memory_back_and_shrinks_before_a_process_dies(host: Rig) -> None:
    commands = (
        f"{FILL.format(80)}; rm /f/x; say touched; modprobe virtio_balloon; say inflated;"
        # More than is left beside the balloon.  Without reporting, what was freed stays taken.
        "dd if=/dev/zero of=/f/x bs=1M count=60 2>/dev/null; echo wrote $(stat -c %s /f/x);"
        "echo killed $(dmesg | grep -c 'Killed process')"
    )
    steps = [("touched", 1 << 40), ("inflated", 80 * MIB)]
    options = ["--memory", "160M", "--balloon", "64M,reporting=off,statistics=1"]
    done = run(host, commands, steps, *options)
    assert done["taken"]["touched"] > 110 * MIB, "the guest has used it, so the host has given it"
    assert done["taken"]["inflated"] < done["taken"]["touched"] - 40 * MIB
    assert re.findall(r"wrote (\d+)|killed (\d+)", done["shown"]) == [(str(60 * MIB), ""), ("", "0")]
    balloon = done["report"]["balloon"]
    assert balloon["target_bytes"] == 96 * MIB
    assert 96 * MIB < balloon["actual_bytes"] < 160 * MIB  # it took some back
    statistics = balloon["statistics"]
    assert 100 * MIB < statistics["total_memory"] < 160 * MIB
    assert 0 < statistics["free_memory"] < statistics["total_memory"]


def test_memory_that_a_guest_frees_goes_back_by_itself(host: Rig) -> None:
    commands = (
        f"modprobe virtio_balloon; {FILL.format(100)}; say full; rm /f/x; say freed;"
        "dd if=/dev/zero of=/f/x bs=1M count=10 2>/dev/null; md5sum </f/x"
    )
    steps = [("full", 1 << 40), ("freed", 90 * MIB)]
    done = run(host, commands, steps, "--memory", "192M", "--balloon", "on")
    assert done["taken"]["full"] > 120 * MIB
    assert done["taken"]["freed"] < done["taken"]["full"] - 70 * MIB, done["taken"]
    assert hashlib.md5(bytes(10 * MIB)).hexdigest() in done["shown"]
