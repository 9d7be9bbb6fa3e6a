"""The watchdog with Linux' own driver for it: quiet while it is fed, and never overlooked."""

from __future__ import annotations

from typing import Any

from functional.guest import Boot, arguments, boot, script_text
from functional.inside import Nemu
from functional.rig import Rig
from functional.test_guest_qmp import PATH, connect, event

LOAD = "modprobe wdat_wdt; cd /sys/class/watchdog/watchdog0"
# busybox' watchdog takes over the file and feeds it; killed, it can not say good-bye.
FEED = "watchdog -F -t 500ms -T {} /dev/watchdog & feeder=$!"


def starve(host: Rig, action: str) -> Boot:
    commands = {
        "driver": f"{LOAD}; cat identity bootstatus state",
        "fed": f"{FEED.format(4)}; sleep 9; cat state timeout; cat timeleft; echo alive",
        "starved": "kill -9 $feeder; sleep 1000",
    }
    return boot(host, commands, "--watchdog", action)


def test_a_guest_that_feeds_it_lives_and_one_that_stops_is_ended(host: Rig) -> None:
    seen = starve(host, "panic")
    assert seen["driver"].split() == ["wdat_wdt", "0", "inactive"]
    state, timeout, left, word = seen["fed"].split()
    assert (state, timeout, word) == ("active", "4", "alive")
    assert 0 <= int(left) <= 4
    assert seen.status == 3
    assert seen.stderr == "nemu: the guest did not feed its watchdog\n"
    assert seen.report["outcome"] == "watchdog"
    assert {"name": "watchdog", "place": "0xfea04000"} in seen.report["devices"]


def test_after_a_reset_the_guest_can_tell_why(host: Rig) -> None:
    commands = (
        f"{LOAD}; echo boot status $(cat bootstatus); [ $(cat bootstatus) = 0 ] || poweroff -f;"
        f"{FEED.format(2)}; sleep 1; kill -9 $feeder; sleep 1000"
    )
    done = host.run_guest(commands, ["--watchdog", "reset"])
    assert done.status == 0
    assert done.stderr == b"nemu: the guest did not feed its watchdog (action: reset)\n"
    assert [line for line in done.stdout.decode().splitlines() if line.startswith("boot status")] == [
        "boot status 0",
        "boot status 32",  # WDIOF_CARDRESET of linux/watchdog.h
    ]


def steer(argv: list[str]) -> dict[str, Any]:
    """Runs inside: a client gives the balloon its size, and lets a machine go on that the watchdog paused."""
    with Nemu([*argv, "--qmp", PATH]) as nemu, connect() as client:
        nemu.expect("ready")
        client.execute("balloon", {"value": 240 << 20})
        seen: dict[str, Any] = {"balloon": event(client, "BALLOON_CHANGE")}
        nemu.type("starve\n")
        seen["watchdog"] = event(client, "WATCHDOG")
        seen["stop"] = event(client, "STOP")
        seen["paused"] = client.execute("query-status")
        client.execute("cont")
        nemu.type("end\n")
        seen |= {"status": nemu.wait(), "errors": nemu.stderr(), "shown": nemu.shown.decode()}
    return seen


def test_a_machine_that_it_paused_goes_on_when_a_client_says_so(host: Rig) -> None:
    script = script_text(
        f"{LOAD}; modprobe virtio_balloon; echo ready; read -r x; {FEED.format(2)}; sleep 1; kill -9 $feeder;"
        "read -r x; echo went on"
    )
    argv = arguments(host, script, "--watchdog", "pause", "--balloon", "on", "--memory", "256M")
    seen = host.call_here(steer, argv=argv, timeout=200)
    assert 240 << 20 <= seen["balloon"]["actual"] < 256 << 20
    assert (seen["watchdog"], seen["stop"]) == ({"action": "pause"}, {})
    assert seen["paused"]["status"] == "paused"
    assert "went on" in seen["shown"]
    assert (seen["status"], seen["errors"]) == (
        0,
        "nemu: the guest did not feed its watchdog (action: pause)\n",
    )
