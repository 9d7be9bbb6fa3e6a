"""The life of a machine: power-off, reboots, the power button, crashes, the time limit, sudden death."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from functional.guest import REPORT, arguments, boot, script_text
from functional.inside import Nemu, gone, processes
from functional.rig import Rig

REBOOTS = 20
# The count of boots is on the disk; the pause is for the look at the process.
COUNTED_BOOT = """
read -r n </dev/vda
n=$((n + 1))
head -c 4096 /dev/hwrng >/dev/null
ip link set eth0 up
echo "$n" | dd of=/dev/vda conv=fsync 2>/dev/null
echo "boot $n: $(nproc) CPUs, $(ls /sys/bus/pci/devices | wc -l) functions."
sleep 0.5
[ "$n" -gt {reboots} ] || reboot -f
"""


def watch_reboots(argv: list[str], reboots: int) -> dict[str, Any]:
    """Runs inside: the resources of the process at each boot of its guest."""
    with Nemu(argv) as nemu:
        seen = []
        for number in range(1, reboots + 2):
            line = nemu.expect(rf"boot {number}: .*\.").splitlines()[-1]
            time.sleep(0.2)
            seen.append({"line": line, **nemu.resources()})
        return {"status": nemu.wait(), "seen": seen, "errors": nemu.stderr()}


@pytest.mark.timeout(420)
def test_twenty_reboots_in_one_process_leave_nothing_behind(host: Rig) -> None:
    host.run(
        [
            "sh",
            "-c",
            "head -c 1048576 /dev/zero >/tmp/count.img; printf '0\\n' | dd of=/tmp/count.img conv=notrunc",
        ]
    )
    script = script_text(COUNTED_BOOT.format(reboots=REBOOTS))
    options = ["--disk", "/tmp/count.img", "--net", "user", "--memory", "128M"]
    argv = arguments(host, script, *options)
    done = host.call_here(watch_reboots, argv=argv, reboots=REBOOTS, timeout=400)
    assert (done["status"], done["errors"]) == (0, "")
    seen = done["seen"]
    assert [look["line"] for look in seen] == [
        f"boot {n + 1}: 1 CPUs, 5 functions." for n in range(REBOOTS + 1)
    ]
    # The first machines warm the interpreter and the allocator up.
    early, late = seen[5], seen[-1]
    assert late["fds"] == early["fds"] == seen[0]["fds"]
    assert late["threads"] == early["threads"]
    assert late["mappings"] <= early["mappings"] + 8
    # A look may fall on a buffer of 2 MiB that is about to go; a leak raises the least of several looks.
    memory = [look["pss"] for look in seen]
    assert min(memory[-5:]) <= min(memory[2:7]) + 512, memory
    report = json.loads(host.get(REPORT))
    assert (report["reboots"], report["outcome"]) == (REBOOTS, "power_off")
    # Each boot costs the same: nothing that a device keeps makes the next machine slower.
    assert report["exits"]["total"] < (REBOOTS + 1) * 1000


def ask_to_end(argv: list[str], signals: list[int]) -> dict[str, Any]:
    """Runs inside: once the guest says "ready", send ``signals``."""
    with Nemu(argv) as nemu:
        nemu.expect("ready")
        first, *more = signals
        nemu.signal(first)
        for number in more:
            time.sleep(1.5)
            assert os.waitpid(nemu.pid, os.WNOHANG) == (0, 0), "it ended at the first signal"
            nemu.signal(number)
        return {"status": nemu.wait(), "errors": nemu.stderr()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("irqchip", ["split", "kernel"])
def test_a_signal_presses_the_power_button_and_the_guest_powers_off(
    host: Rig, number: int, irqchip: str
) -> None:
    if (number, irqchip) == (signal.SIGINT, "kernel"):
        number = signal.SIGHUP
    argv = arguments(host, script_text("echo ready; sleep 1000"), "--irqchip", irqchip)
    assert host.call_here(ask_to_end, argv=argv, signals=[number]) == {"status": 0, "errors": ""}


def test_a_second_signal_ends_a_guest_that_ignores_the_button(host: Rig) -> None:
    argv = arguments(host, script_text("kill $(cat /run/acpid.pid); echo ready; sleep 1000"))
    done = host.call_here(ask_to_end, argv=argv, signals=[signal.SIGTERM, signal.SIGTERM])
    assert done == {"status": 128 + signal.SIGTERM, "errors": ""}


def test_a_panic_is_told_with_status_3(host: Rig) -> None:
    argv = arguments(host, script_text("echo c >/proc/sysrq-trigger"))
    done = host.run_nemu(argv)
    assert done.status == 3
    assert b"Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(b"nemu: the guest panicked")
    assert json.loads(host.get(REPORT))["outcome"] == "panic"


def test_a_triple_fault_is_told_with_status_3(host: Rig) -> None:
    booted = boot(host, {"up": "echo up; reboot -f"}, append="reboot=t")
    assert booted.status == 3
    assert booted["up"].splitlines()[0] == "up"
    assert booted.stderr.startswith("nemu: ")
    assert "triple fault" in booted.stderr
    assert booted.stderr.count("\n") == 1


def test_the_time_limit_ends_the_guest_with_status_4(host: Rig) -> None:
    begin = time.monotonic()
    booted = boot(host, {"up": "sleep 1000"}, "--timeout", "20")
    assert booted.status == 4
    assert 20 <= time.monotonic() - begin < 60
    assert booted.stderr == "nemu: the time was up\n"
    assert booted.report["outcome"] == "timeout"
    assert 20 <= booted.report["times"]["total_s"] < 60


def kill_suddenly(argv: list[str], path: str) -> dict[str, Any]:
    """Runs inside: kill nemu without a warning, then start it again on the same socket."""
    with Nemu([*argv, "--console", "socket=" + path]) as nemu:
        deadline = time.monotonic() + 30
        while not (processes("passt") and os.path.exists(path)):
            assert time.monotonic() < deadline, nemu.stderr()
            time.sleep(0.05)
        time.sleep(3)
        passt = processes("passt")
        nemu.signal(signal.SIGKILL)
        status = nemu.wait()
        left = not gone(lambda: processes("passt"))
    with Nemu([*argv, "--console", "socket=" + path, "--timeout", "4"]) as again:
        return {
            "passt": len(passt),
            "status": status,
            "left": left,
            "again": again.wait(),
            "errors": again.stderr(),
            "socket": os.path.exists(path),
            "passt_again": not gone(lambda: processes("passt")),
        }


def test_sudden_death_leaves_no_process_and_its_socket_is_taken_over(host: Rig) -> None:
    argv = arguments(host, script_text("sleep 1000"), "--net", "user")
    done = host.call_here(kill_suddenly, argv=argv, path="/tmp/k.sock")
    assert (done["passt"], done["left"]) == (1, False)
    assert done["status"] == -signal.SIGKILL
    assert done["again"] == 4, done["errors"]
    assert (done["socket"], done["passt_again"]) == (False, False)


def trace_idle(argv: list[str], settle: float, seconds: float) -> dict[str, Any]:
    """Runs inside: the system calls of nemu while its guest sleeps, as strace sees them."""
    import re
    import subprocess

    with Nemu(argv) as nemu:
        nemu.expect("idle")
        command = ["strace", "-f", "-ttt", "-o", "/tmp/idle.txt", "-p", str(nemu.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
            # strace interrupts what the threads are in as it attaches: that is its doing, not ours.
            time.sleep(settle)
            begin = time.time()
            time.sleep(seconds)
            end = time.time()
            threads = nemu.resources()["threads"]
            strace.terminate()
        nemu.type("x\n")
        status = nemu.wait()
    with open("/tmp/idle.txt", encoding="utf-8") as file:
        lines = file.readlines()
    times = [(float(found[1]), line) for line in lines if (found := re.match(r"\d+ +([\d.]+) ", line))]
    return {
        "attached": len(times),
        "inside": [line for at, line in times if begin <= at <= end],
        "threads": threads,
        "status": status,
    }


def test_an_idle_guest_costs_no_system_call(host: Rig) -> None:
    host.run(["sh", "-c", "/bin/ip tuntap add idle0 mode tap; truncate -s 1M /tmp/idle.img"])
    script = script_text("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo idle; read -r x")
    # No entropy device: a young Linux asks it every few seconds by itself.
    devices = ["--disk", "/tmp/idle.img", "--net", "tap=idle0", "--cpus", "2", "--rng", "off"]
    done = host.call_here(trace_idle, argv=arguments(host, script, *devices), settle=3.0, seconds=15.0)
    assert done["status"] == 0
    assert done["attached"] > 0, "strace saw nothing at all"
    assert done["inside"] == []
