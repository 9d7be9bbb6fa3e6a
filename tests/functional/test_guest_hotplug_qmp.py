"""Kata's hot-plug sequence by QMP on a real guest: each comes, works, goes, and a reboot keeps what came."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import pytest

from functional.guest import arguments, script_text
from functional.inside import Nemu
from functional.rig import Rig
from nemu.qmp.client import QmpClient
from nemu.qmp.errors import QmpError

PATH, IMAGE = "/tmp/hot.sock", "/tmp/hot.img"
MIB = 1 << 20
MAC = "52:54:00:ab:cd:ef"
CYCLES = 20
# A shell on the console: a line in, what it printed and "#end" out.
SHELL = r"""
modprobe -a virtio_blk virtio_net virtio_rng 2>/dev/null
online() { for f in $(grep -ls "$1" /sys/devices/system/$2); do echo "$3" >$f; done; }
await() { n=0; until eval "$1" || [ $((n = n + 1)) -gt 300 ]; do sleep 0.1; done; }
memory() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
echo ready
while read -r line; do eval "$line"; echo "#end"; done
"""
CPU = {"driver": "host-x86_64-cpu", "id": "cpu-1", "socket-id": 0, "core-id": 1, "thread-id": 0}
ONLINE_CPU = "await '[ -e /sys/devices/system/cpu/cpu1/online ]'; online 0 cpu/cpu1/online 1"
BLOCKS = "await 'grep -q offline /sys/devices/system/memory/memory*/state'; sleep 0.5; "
BLOCKS += "online offline 'memory/memory*/state' online_movable"
DISK = "/sys/bus/pci/devices/0000:00:05.0"


class Steered:
    """A machine, its shell and its QMP client."""

    def __init__(self, nemu: Nemu) -> None:
        self.nemu = nemu
        deadline = time.monotonic() + 60
        while not os.path.exists(PATH):
            assert time.monotonic() < deadline, nemu.stderr()
            time.sleep(0.05)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(PATH)
        self.client = QmpClient(connection)

    def ask(self, command: str) -> str:
        """What the guest's shell prints."""
        self.nemu.type(f"{command}\n")
        shown = self.nemu.expect("#end\r?\n").removesuffix("#end\n").strip()
        return shown.removeprefix(command).strip()  # the terminal's echo

    def do(self, name: str, /, rights: tuple[int, ...] = (), **given: Any) -> Any:
        return self.client.execute(name, {key.replace("_", "-"): given[key] for key in given}, rights)

    def remove(self, name: str) -> None:
        """Return when the guest has let go."""
        self.do("device_del", id=name)
        self.client.wait_event("DEVICE_DELETED")

    def add_disk(self) -> None:
        file = {"driver": "file", "filename": IMAGE, "aio": "threads"}
        self.do("blockdev-add", driver="raw", node_name="drive-0", read_only=False, file=file)
        extra: dict[str, Any] = {
            "share_rw": "on",
            "num_queues": "1",
            "romfile": "",
            "disable_modern": "false",
        }
        where: dict[str, Any] = {"bus": "pcie.0", "addr": "05"}
        self.do("device_add", driver="virtio-blk-pci", id="disk", drive="drive-0", **where, **extra)

    def add_memory(self) -> None:
        self.do("object-add", qom_type="memory-backend-ram", id="mem1", size=256 * MIB)
        self.do("device_add", driver="pc-dimm", id="dimm1", memdev="mem1")


def cpu(steered: Steered, seen: dict[str, Any]) -> None:
    (free,) = [one for one in steered.do("query-hotpluggable-cpus") if "qom-path" not in one]
    seen["cpu offered"] = {"driver": free["type"], **free["props"]} == {
        key: value for key, value in CPU.items() if key != "id"
    }
    for _ in range(CYCLES):
        steered.client.execute("device_add", CPU)
        steered.ask(ONLINE_CPU)
        seen["cpus"] = steered.ask("cat /sys/devices/system/cpu/online")
        steered.remove("cpu-1")
    seen["cpus left"] = steered.ask("cat /sys/devices/system/cpu/online")


def memory(steered: Steered, seen: dict[str, Any]) -> None:
    seen["memory"] = [int(steered.ask("memory"))]
    steered.add_memory()
    steered.ask(BLOCKS)
    seen["memory"].append(int(steered.ask("memory")))
    seen["memory told"] = steered.do("query-memory-size-summary")
    steered.remove("dimm1")
    seen["memory"].append(int(steered.ask("memory")))
    steered.do("object-del", id="mem1")


def disk(steered: Steered, seen: dict[str, Any]) -> None:
    with open(IMAGE, "wb") as file:
        file.write(b"hello from outside\n".ljust(MIB, b"\0"))
    for _ in range(CYCLES):
        steered.add_disk()
        seen["disk"] = steered.ask("await '[ -e /dev/vda ]'; head -n1 /dev/vda")
        steered.remove("disk")
        steered.do("blockdev-del", node_name="drive-0")
    seen["disk left"] = steered.ask(f"ls -d {DISK} /dev/vda 2>/dev/null")


def card(steered: Steered, seen: dict[str, Any]) -> None:
    import fcntl
    import struct

    from nemu.backends.tap import DEVICE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF

    for _ in range(CYCLES):
        tap = os.open(DEVICE, os.O_RDWR)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        steered.do("getfd", fdname="tap-a", rights=(tap,))
        os.close(tap)
        steered.do("netdev_add", type="tap", id="net0", fds="tap-a", vhost=False)
        extra: dict[str, Any] = {"mq": "on", "vectors": 4, "romfile": ""}
        steered.do("device_add", driver="virtio-net-pci", id="card", netdev="net0", mac=MAC, **extra)
        seen["mac"] = steered.ask("await '[ -e /sys/class/net/eth0 ]'; cat /sys/class/net/*/address")
        steered.remove("card")
        steered.do("netdev_del", id="net0")


def wrong(steered: Steered) -> list[str]:
    found = []
    for name, given in (
        ("device_add", {"driver": "nope"}),
        ("device_add", {**CPU, "core-id": 9}),
        ("device_add", {"driver": "virtio-blk-pci", "drive": "nope"}),
        ("device_del", {"id": "nope"}),
    ):
        try:
            steered.client.execute(name, given)
        except QmpError as error:
            found.append(error.kind)
    return found


def steer(argv: list[str]) -> dict[str, Any]:
    """Runs inside."""
    seen: dict[str, Any] = {}
    with Nemu([*argv, "--qmp", PATH, "--start", "paused"]) as nemu:
        steered = Steered(nemu)
        steered.client.execute("device_add", CPU)  # before the guest has ACPI, and while nothing runs
        steered.do("cont")
        nemu.expect("ready\r?\n")
        steered.ask(ONLINE_CPU)
        seen["early"] = steered.ask("cat /sys/devices/system/cpu/online")
        steered.remove("cpu-1")
        for one in (cpu, memory, disk, card):
            one(steered, seen)
            if one is cpu:
                before = nemu.resources()
        seen["wrong"] = wrong(steered)
        after = nemu.resources()
        seen["held"] = [[one["fds"], one["threads"]] for one in (before, after)]
        keep(steered, seen)
        steered.do("system_powerdown")
        steered.client.wait_closed()
        seen["status"], seen["errors"] = nemu.wait(), nemu.stderr()
    return seen


def keep(steered: Steered, seen: dict[str, Any]) -> None:
    """What comes while the machine is paused, and is there after a reset."""
    steered.do("stop")
    steered.client.execute("device_add", CPU)
    steered.add_memory()
    steered.add_disk()
    steered.do("cont")
    steered.ask(f"{ONLINE_CPU}; {BLOCKS}; await '[ -e /dev/vda ]'")
    state = "cat /sys/devices/system/cpu/online; memory; head -n1 /dev/vda"
    seen["while paused"] = steered.ask(state)
    steered.do("system_reset")
    steered.nemu.expect("ready\r?\n")
    steered.ask(f"await '[ -e /dev/vda ]'; {BLOCKS}")
    seen["after a reset"] = steered.ask(f"{state}; ls -d {DISK}")


@pytest.fixture(scope="module")
def steered(host: Rig) -> dict[str, Any]:
    options = ["--cpus", "1,max=2", "--memory", "256M,max=1G,slots=2", "--hotplug", "cpu,memory,pci"]
    argv = [*arguments(host, script_text(SHELL)), *options]
    result: dict[str, Any] = host.call_here(steer, argv=argv, timeout=400)
    return result


@pytest.mark.timeout(500)
def test_a_cpu_comes_before_the_guest_has_acpi(steered: dict[str, Any]) -> None:
    assert steered["early"] == "0-1"


def test_cpus_come_and_go(steered: dict[str, Any]) -> None:
    assert steered["cpu offered"]
    assert (steered["cpus"], steered["cpus left"]) == ("0-1", "0")


def test_memory_comes_and_goes_to_the_page(steered: dict[str, Any]) -> None:
    start, more, end = steered["memory"]
    assert (more - start, end) == (256 * 1024, start)
    assert steered["memory told"] == {"base-memory": 256 * MIB, "plugged-memory": 256 * MIB}


def test_a_disk_comes_with_its_content_and_goes(steered: dict[str, Any]) -> None:
    assert (steered["disk"], steered["disk left"]) == ("hello from outside", "")


def test_a_card_comes_with_its_address(steered: dict[str, Any]) -> None:
    assert MAC in steered["mac"]


def test_what_is_wrong_is_refused(steered: dict[str, Any]) -> None:
    assert steered["wrong"] == ["GenericError", "GenericError", "GenericError", "DeviceNotFound"]


def test_nothing_is_left_of_what_went(steered: dict[str, Any]) -> None:
    before, after = steered["held"]
    assert before == after


def test_a_reset_keeps_what_came(steered: dict[str, Any]) -> None:
    cpus, before, content = steered["while paused"].splitlines()
    assert (cpus, content) == ("0-1", "hello from outside")
    cpus, after, content, disk = steered["after a reset"].splitlines()
    assert (cpus, content, disk) == ("0-1", "hello from outside", DISK)
    # What a kernel takes for itself as it boots depends on the CPUs that are there.
    assert abs(int(after) - int(before)) < 1024
    assert (steered["status"], steered["errors"]) == (0, "")
