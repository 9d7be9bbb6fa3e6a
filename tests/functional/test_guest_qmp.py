"""A machine under QMP: a real guest stops, goes on, starts anew and ends; real clients use it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from typing import Any

import pytest

from functional.guest import arguments, script_text
from functional.inside import ENVIRONMENT, PYTHON, Nemu, gone
from functional.rig import Rig
from nemu.qmp.client import QmpClient

PATH = "/tmp/q.sock"
# Its clock and its count of NMIs, five times a second.
TICKS = """
modprobe virtio_balloon
echo ready
while :; do
    read -r up rest </proc/uptime
    nmi=$(grep NMI: /proc/interrupts | (read -r head first rest; echo $first))
    echo "tick $up $nmi."
    sleep 0.2
done
"""
PAUSE = 3.0  # seconds


def connect(patience: float = 60.0) -> QmpClient:
    """A client of the machine, as soon as it listens."""
    deadline = time.monotonic() + patience
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(patience)
        try:
            connection.connect(PATH)
            return QmpClient(connection)
        except OSError:
            connection.close()
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.05)


def tick(nemu: Nemu) -> tuple[float, int]:
    """The guest's uptime and its NMIs, of the next tick."""
    found = re.search(r"tick ([\d.]+) (\d+)\.", nemu.expect(r"tick [\d.]+ \d+\."))
    assert found
    return float(found[1]), int(found[2])


def cpu_times(pid: int, client: QmpClient) -> list[str]:
    """What the threads of the CPUs have computed, user and system, guest time included."""
    times = []
    for cpu in client.execute("query-cpus-fast"):
        with open(f"/proc/{pid}/task/{cpu['thread-id']}/stat", encoding="ascii") as file:
            times.append(" ".join(file.read().rpartition(")")[2].split()[11:13]))
    return times


def begin(nemu: Nemu, client: QmpClient, seen: dict[str, Any]) -> None:
    seen["at start"] = client.execute("query-status")
    time.sleep(1)
    seen["before cont"] = nemu.shown.decode()
    client.execute("cont")
    client.wait_event("RESUME")
    nemu.expect("ready")
    tick(nemu)


def stand_still(nemu: Nemu, client: QmpClient, other: QmpClient, seen: dict[str, Any]) -> None:
    client.execute("stop")
    other.wait_event("STOP")
    seen["stopped"] = other.execute("query-status")
    time.sleep(0.5)
    nemu._read(0.1)
    nemu.shown = b""
    before = cpu_times(nemu.pid, client)
    time.sleep(PAUSE)
    seen["cpu times"] = [before, cpu_times(nemu.pid, client)]
    nemu._read(0.1)
    seen["said while stopped"] = nemu.shown.decode()


def go_on(nemu: Nemu, client: QmpClient, seen: dict[str, Any]) -> None:
    up, _ = tick(nemu)
    stand_still(nemu, client, connect(), seen)
    began = time.monotonic()
    client.execute("cont")
    after, _ = tick(nemu)
    seen["clock"] = [after - up, time.monotonic() - began]
    for _ in range(50):
        client.execute("stop")
        client.execute("cont")
    tick(nemu)
    seen["running again"] = client.execute("query-status")


def interrupt(nemu: Nemu, client: QmpClient, seen: dict[str, Any]) -> None:
    _, before = tick(nemu)
    client.execute("inject-nmi")
    deadline = time.monotonic() + 30
    while (after := tick(nemu)[1]) == before:
        assert time.monotonic() < deadline, "no NMI came"
    seen["nmis"] = after - before


def give_memory_back(nemu: Nemu, client: QmpClient, seen: dict[str, Any]) -> None:
    """Until the guest has done what its balloon asks for."""
    before = client.execute("query-balloon")["actual"]
    target = before - (64 << 20)
    client.execute("balloon", {"value": target})
    while client.execute("query-balloon")["actual"] > target:
        seen.setdefault("balloon", []).append(event(client, "BALLOON_CHANGE")["actual"])
    seen["balloon target"] = target


def start_anew(nemu: Nemu, client: QmpClient, seen: dict[str, Any]) -> None:
    client.execute("stop")
    client.execute("system_reset")
    seen["reset"] = event(client, "RESET")
    seen["after reset"] = client.execute("query-status")
    client.execute("cont")
    nemu.expect("ready")
    tick(nemu)


def event(client: QmpClient, name: str) -> dict[str, Any]:
    """The data of the next event ``name``."""
    while True:
        for one in client._events:
            if one["event"] == name:
                client._events.remove(one)
                data: dict[str, Any] = one.get("data", {})
                return data
        client._events.append(client._message())


def steer(argv: list[str]) -> dict[str, Any]:
    """Runs inside: one machine, from --start paused to its power button."""
    seen: dict[str, Any] = {}
    with Nemu(
        [*argv, "--qmp", PATH, "--start", "paused", "--cpus", "2", "--balloon", "on", "--name", "steered"]
    ) as nemu:
        client = connect()
        begin(nemu, client, seen)
        go_on(nemu, client, seen)
        interrupt(nemu, client, seen)
        give_memory_back(nemu, client, seen)
        seen["pci"] = client.execute("query-pci")
        before = nemu.resources()
        start_anew(nemu, client, seen)
        seen["left by reset"] = [before["fds"], nemu.resources()["fds"]]
        client.execute("system_powerdown")
        event(client, "POWERDOWN")
        seen["shutdown"] = event(client, "SHUTDOWN")
        client.wait_closed()
        seen["status"] = nemu.wait()
        seen["errors"] = nemu.stderr()
    seen["socket left"] = os.path.exists(PATH) or os.path.exists("/run/nemu/steered.qmp")
    return seen


@pytest.fixture(scope="module")
def steered(host: Rig) -> dict[str, Any]:
    result: dict[str, Any] = host.call_here(steer, argv=arguments(host, script_text(TICKS)), timeout=240)
    return result


@pytest.mark.timeout(420)
def test_a_machine_can_wait_for_its_first_instruction(steered: dict[str, Any]) -> None:
    assert steered["at start"] == {"running": False, "status": "prelaunch"}
    assert steered["before cont"] == ""


def test_a_stopped_machine_stands_still(steered: dict[str, Any]) -> None:
    assert steered["stopped"] == {"running": False, "status": "paused"}
    before, after = steered["cpu times"]
    assert len(before) == 2
    assert before == after
    assert steered["said while stopped"] == ""


def test_its_clock_does_not_jump(steered: dict[str, Any]) -> None:
    missed, took = steered["clock"]
    # From the tick before the stop to the one after cont; what it ran between is all that it may have seen.
    assert 0 < missed < PAUSE / 2 + took
    assert steered["running again"]["running"]


def test_an_nmi_reaches_every_cpu(steered: dict[str, Any]) -> None:
    assert steered["nmis"] >= 1


def test_the_balloon_takes_what_it_is_told_to(steered: dict[str, Any]) -> None:
    told = steered["balloon"]
    assert told == sorted(told, reverse=True), "it only grows"
    assert all(steered["balloon target"] <= actual for actual in told)


def test_bars_are_where_the_guest_has_them(steered: dict[str, Any]) -> None:
    (bus,) = steered["pci"]
    names = [device["qdev_id"] for device in bus["devices"]]
    assert names == ["", "virtio-console0", "virtio-rng0", "virtio-balloon0"]
    for device in bus["devices"][1:]:
        (region,) = device["regions"]
        assert region["address"] > 0
        assert region["address"] % region["size"] == 0


def test_a_reset_builds_the_machine_anew_and_keeps_its_clients(steered: dict[str, Any]) -> None:
    assert steered["reset"] == {"guest": False, "reason": "host-qmp-system-reset"}
    assert steered["after reset"] == {"running": False, "status": "prelaunch"}
    before, after = steered["left by reset"]
    assert before == after


def test_the_power_button_ends_it_through_its_guest(steered: dict[str, Any]) -> None:
    assert steered["shutdown"] == {"guest": True, "reason": "guest-shutdown"}
    assert (steered["status"], steered["errors"], steered["socket left"]) == (0, "", False)


def end_in_a_panic(argv: list[str]) -> dict[str, Any]:
    """Runs inside: what clients hear of a guest that panics."""
    with Nemu([*argv, "--qmp", PATH]) as nemu:
        client = connect()
        nemu.expect("ready")
        nemu.type("go\n")
        panicked = event(client, "GUEST_PANICKED")
        return {"panicked": panicked, "shutdown": event(client, "SHUTDOWN"), "status": nemu.wait()}


def test_a_panic_is_told(host: Rig) -> None:
    argv = arguments(host, script_text("echo ready; read -r go; echo c >/proc/sysrq-trigger"))
    done = host.call_here(end_in_a_panic, argv=argv)
    assert done["panicked"] == {"action": "poweroff"}
    assert done["shutdown"] == {"guest": True, "reason": "guest-panic"}
    assert done["status"] == 3


# --- clients that nobody here wrote, on a machine before its first instruction --------------------

LIBVIRT_PROBE: list[tuple[str, dict[str, Any]]] = [
    ("query-version", {}),
    ("query-target", {}),
    ("query-qmp-schema", {}),
    ("query-kvm", {}),
    ("query-accelerators", {}),
    ("qom-list-types", {}),
    ("device-list-properties", {"typename": "virtio-blk-pci"}),
    ("device-list-properties", {"typename": "virtio-net-pci"}),
    ("qom-list-properties", {"typename": "virt-machine"}),
    ("query-machines", {}),
    ("query-cpu-definitions", {}),
    ("query-command-line-options", {}),
    ("query-cpu-model-expansion", {"type": "full", "model": {"name": "host"}}),
    ("query-commands", {}),
    ("query-events", {}),
]


def library_client() -> dict[str, Any]:
    """The qemu.qmp library: commands, errors, events, a descriptor."""
    import asyncio

    from qemu.qmp import ExecuteError, QMPClient

    async def talk() -> dict[str, Any]:
        client = QMPClient("test")
        await client.connect(PATH)
        seen: dict[str, Any] = {"probe": {}}
        for name, given in LIBVIRT_PROBE:
            seen["probe"][name] = await client.execute(name, given)
        try:
            await client.execute("device-list-properties", {"typename": "nope"})
        except ExecuteError as error:
            seen["error"] = [error.error_class, str(error)]
        read, write = os.pipe()
        client.send_fd_scm(read)
        await client.execute("getfd", {"fdname": "pipe"})
        await client.execute("closefd", {"fdname": "pipe"})
        os.close(read)
        os.close(write)
        with client.listener(("RESUME", "STOP")) as listener:
            await client.execute("cont")
            await client.execute("stop")
            seen["events"] = [(await listener.get())["event"] for _ in range(2)]
        await client.disconnect()
        return seen

    return asyncio.run(talk())


def shell_client() -> str:
    """qmp-shell, as a person types; its last command ends the machine."""
    typed = "query-name\nquery-cpu-model-expansion type=full model={'name':'nope'}\n\nquit\n"
    command = [PYTHON, "-m", "qemu.qmp.qmp_shell", PATH]
    environment = {**ENVIRONMENT, "PYTHONPATH": "/nemu/src:/nemu/tests"}
    return subprocess.run(
        command, input=typed, env=environment, capture_output=True, text=True, check=False
    ).stdout


def own_commands() -> dict[str, str]:
    """nemu's own commands on the same machine."""

    def nemu(*argv: str, typed: str = "") -> str:
        done = subprocess.run(
            [PYTHON, "-m", "nemu", *argv],
            input=typed,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    seen = {"ps": nemu("ps"), "query": nemu("qmp", "foreign", "query-status")}
    seen["resume"] = nemu("resume", "foreign") + nemu("ps")
    seen["pause"] = nemu("pause", "foreign") + nemu("ps")
    seen["wrong"] = nemu("qmp", "foreign", "balloon", "value=abc")
    seen["unknown"] = nemu("pause", "foreing")
    seen["console"] = nemu("console", "foreign")
    environment = ENVIRONMENT["PYTHONPATH"]
    ENVIRONMENT["PYTHONPATH"] = "/nemu/src:/nemu/tests"
    seen["shell"] = nemu("qmp", "foreign", typed="query-uuid\nhelp stop\nballoon value=1\nbaloon\n")
    ENVIRONMENT["PYTHONPATH"] = environment
    return seen


def serve_foreigners(argv: list[str]) -> dict[str, Any]:
    """Runs inside: a machine, and one client after the other."""
    with Nemu([*argv, "--qmp", PATH, "--start", "paused", "--name", "foreign"]) as nemu:
        with connect():
            pass
        seen: dict[str, Any] = {"library": library_client(), "own": own_commands(), "shell": shell_client()}
        seen |= {"status": nemu.wait(), "errors": nemu.stderr()}
    return {**seen, "gone": gone(lambda: os.path.exists(PATH))}


@pytest.fixture(scope="module")
def foreign(host: Rig) -> dict[str, Any]:
    argv = arguments(host, script_text("sleep 1000"))
    result: dict[str, Any] = host.call_here(serve_foreigners, argv=argv, timeout=240)
    return result


def test_the_library_of_qemu_finds_what_it_expects(foreign: dict[str, Any]) -> None:
    seen = foreign["library"]
    assert seen["error"] == ["DeviceNotFound", "Device 'nope' not found"]
    assert seen["events"] == ["RESUME", "STOP"]


def test_the_probe_of_libvirt_is_answered(foreign: dict[str, Any]) -> None:
    answers = foreign["library"]["probe"]
    assert answers["query-target"] == {"arch": "x86_64"}
    assert answers["query-kvm"] == {"enabled": True, "present": True}
    assert [one["name"] for one in answers["query-machines"]] == ["virt"]
    names = {one["name"] for one in answers["query-qmp-schema"]}
    assert {one["name"] for one in answers["query-commands"]} <= names
    assert "virtio-blk-pci" in {one["name"] for one in answers["qom-list-types"]}


def test_qmp_shell_works(foreign: dict[str, Any]) -> None:
    assert '{"return": {"name": "foreign"}}' in foreign["shell"]
    assert "CPU model 'nope' not found" in foreign["shell"]
    assert (foreign["status"], foreign["errors"], foreign["gone"]) == (0, "", True)


def test_nemus_own_commands_work(foreign: dict[str, Any]) -> None:
    seen = foreign["own"]
    assert re.search(r"^foreign +\d+ +paused +1 +512M$", seen["ps"], re.MULTILINE)
    assert '"status": "paused"' in seen["query"]
    assert " running " in seen["resume"]
    assert " paused " in seen["pause"]
    assert seen["wrong"].startswith("nemu: foreign: Invalid parameter type for 'value', expected: integer")
    assert seen["unknown"] == "nemu: VM foreing: no running machine has this name; did you mean foreign?\n"
    assert "its console is stdio" in seen["console"]
    assert '"UUID": "00000000-' in seen["shell"]
    assert "Stop the CPUs" in seen["shell"]
    assert "DeviceNotActive: No balloon device" in seen["shell"]
    assert "no such command; did you mean balloon?" in seen["shell"]
