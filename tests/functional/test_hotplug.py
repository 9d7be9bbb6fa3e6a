"""CPUs and PCI devices come and go in a running guest, seen from inside and from outside."""

from __future__ import annotations

from typing import Any

import pytest

from functional.guest import initrd_with, script_text
from functional.rig import KERNEL, Rig

CONSOLE = "/tmp/hot-console"
ONLINE = "/sys/devices/system/cpu/online"
RNG = "/sys/bus/pci/devices/0000:00:1f.0"
RNGS = "/sys/class/misc/hw_random/rng_available"
# In the guest: "await CONDITION" looks for half a minute and more.
HELPERS = r"""memory() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
await() { n=0; until eval "$1" || [ $((n = n + 1)) -gt 300 ]; do sleep 0.1; done; }"""


class Driver:
    """Runs a machine inside and does ``steps[N]`` when its console shows "step N"."""

    def __init__(self, config: str, steps: list[str]) -> None:
        from nemu.config import MachineConfig, RunOptions
        from nemu.session import Session

        self.session = Session(MachineConfig.from_json(config), RunOptions(timeout=240))
        self.pending = list(enumerate(steps))
        self.log: list[str] = []

    def run(self) -> dict[str, Any]:
        self.session.loop.call_later(0.1, self.poll)
        status = self.session.run()
        return {"status": status, "log": self.log, "console": self.shown()}

    @staticmethod
    def shown() -> str:
        with open(CONSOLE, encoding="ascii", errors="replace") as file:
            return file.read().replace("\r", "")

    def poll(self) -> None:
        from nemu.plug import PlugError

        machine = self.session._machine
        if machine is not None:
            machine.reported = lambda kind, ost: self.log.append(f"{kind} {tuple(ost)}")
            machine.cpus.removed = lambda number: self.log.append(f"removed cpu {number}")
            machine.dimms.removed = lambda slot, dimm: self.log.append(f"removed memory {slot}")
            machine.pci.removed = lambda slot: self.log.append(f"removed device {slot}")
            while self.pending and f"step {self.pending[0][0]}\n" in self.shown():
                try:
                    self.act(machine, *self.pending[0][1].split())
                except PlugError as error:  # what leaves may take its time: once more in a moment
                    self.log.append(str(error))
                    break
                self.pending.pop(0)
        self.session.loop.call_later(0.1, self.poll)

    def act(self, machine: Any, what: str, number: str) -> None:
        from nemu.plug.memory import new_dimm
        from nemu.virtio.rng import VirtioRng

        match what:
            case "plug-cpu":
                machine.cpus.plug(int(number))
            case "unplug-cpu":
                machine.cpus.request_removal(int(number))
            case "plug-rng":
                machine.pci.plug(VirtioRng("hot-rng", self.session.loop), int(number))
            case "plug-memory":
                machine.dimms.plug(new_dimm(int(number) << 20))
            case "unplug-memory":
                machine.dimms.request_removal(int(number))
            case "unplug-pci":
                machine.pci.request_removal(int(number))


def drive(config: str, steps: list[str]) -> dict[str, Any]:
    """Runs inside."""
    return Driver(config, steps).run()


def run(host: Rig, commands: dict[str, str], steps: list[str], **config: Any) -> dict[str, Any]:
    from nemu.config import MachineConfig
    from nemu.config.chardev import ChardevConfig

    script = script_text({"head": "true", **commands}).replace("exec 2>&1", f"exec 2>&1\n{HELPERS}", 1)
    described = MachineConfig(
        kernel=KERNEL,
        initrd=initrd_with(host, script),
        append=f"{host.append} nemu.run=/t",
        console=ChardevConfig("file", CONSOLE),
        **config,
    )
    done: dict[str, Any] = host.call_here(drive, config=described.to_json(), steps=steps, timeout=280)
    parts = done["console"].split("\n#<")
    done["sections"] = {name: text.strip("\n") for name, _, text in (part.partition(">\n") for part in parts)}
    return done


def online(step: int, cpu: int) -> str:
    """Wait for CPU ``cpu`` to come, set it online, and show what is."""
    path = f"/sys/devices/system/cpu/cpu{cpu}/online"
    return f"echo step {step}; await '[ -e {path} ]'; echo 1 >{path}; cat {ONLINE}"


@pytest.fixture(scope="module")
def plugged(host: Rig) -> dict[str, Any]:
    from nemu.config.cpus import Cpus

    commands = {
        "start": f"cat {ONLINE} /sys/devices/system/cpu/possible",
        "come": online(0, 1),
        "go": f"echo step 1; await '[ $(cat {ONLINE}) = 0 ]'; cat {ONLINE}",
        "again": online(2, 1),
        "rng": f"echo step 3; await 'grep -q virtio_rng.1 {RNGS}'; cat {RNG}/device {RNGS}",
        "rng-gone": f"echo step 4; await '[ ! -e {RNG} ]'; ls /sys/bus/pci/devices",
        "log": "dmesg -r | grep '^<[0-4]>' | grep -iE 'acpi|hotplug|hot-'",
    }
    steps = ["plug-cpu 1", "unplug-cpu 1", "plug-cpu 1", "plug-rng 31", "unplug-pci 31"]
    return run(host, commands, steps, cpus=Cpus(1, 4), hotplug=("cpu", "pci"))


FILL = "mount -t tmpfs none /tmp; for n in 1 2 3 4 5 6 7 8; do mkdir -p /tmp/$n/$n; done"
OFFLINE = "grep -q offline /sys/devices/system/memory/memory*/state"


def set_online(how: str) -> str:
    return f"for b in $(grep -l offline /sys/devices/system/memory/memory*/state); do echo {how} >$b; done"


@pytest.fixture(scope="module")
def remembered(host: Rig) -> dict[str, Any]:
    """256 MiB come and go; 128 MiB come, and the guest, which uses them for its kernel, refuses to let go."""
    from nemu.config.cpus import MIB, Memory

    commands = {
        "start": "memory",
        "come": f"echo step 0; await '{OFFLINE}'; sleep 1; {set_online('online_movable')}; memory",
        "go": "echo step 1; await '[ $(memory) -lt 300000 ]'; memory",
        "again": f"echo step 2; await '{OFFLINE}'; {set_online('online_kernel')}; {FILL}; memory",
        "stay": "echo step 3; sleep 5; memory",
        "log": "dmesg -r | grep '^<[0-3]>' | grep -iE 'acpi|memory|hotplug'",
    }
    steps = ["plug-memory 256", "unplug-memory 0", "plug-memory 128", "unplug-memory 0"]
    memory = Memory(256 * MIB, 1024 * MIB, 2)
    return run(host, commands, steps, memory=memory, hotplug=("memory",))


def test_memory_grows_and_shrinks_by_exactly_what_came_and_went(remembered: dict[str, Any]) -> None:
    start = int(remembered["sections"]["start"])
    assert int(remembered["sections"]["come"].splitlines()[1]) == start + 256 * 1024
    assert int(remembered["sections"]["go"].splitlines()[-1]) == start
    assert int(remembered["sections"]["again"].splitlines()[-1]) == start + 128 * 1024
    assert remembered["log"].count("removed memory 0") == 1


def test_a_removal_that_the_guest_refuses_is_reported_and_the_memory_stays(
    remembered: dict[str, Any],
) -> None:
    assert remembered["sections"]["stay"].splitlines()[-1] == remembered["sections"]["again"].splitlines()[-1]
    refused = [entry for entry in remembered["log"] if entry.startswith("MEMORY (0, 3, ")][-1]
    assert refused not in ("MEMORY (0, 3, 0)", "MEMORY (0, 3, 132)")  # neither success nor still at it
    assert remembered["sections"]["log"] == ""


def test_the_guest_knows_how_many_cpus_may_come(plugged: dict[str, Any]) -> None:
    assert plugged["status"] == 0, plugged["console"][-2000:]
    assert plugged["sections"]["start"] == "0\n0-3"


def test_a_cpu_comes_and_goes_and_comes_again(plugged: dict[str, Any]) -> None:
    assert plugged["sections"]["come"].splitlines()[1:] == ["0-1"]
    assert plugged["sections"]["go"].splitlines()[1:] == ["0"]
    assert plugged["sections"]["again"].splitlines()[1:] == ["0-1"]
    assert "removed cpu 1" in plugged["log"]


def test_a_device_comes_and_goes_straight_on_the_root_bus(plugged: dict[str, Any]) -> None:
    assert "0x1044" in plugged["sections"]["rng"]
    assert "virtio_rng.1" in plugged["sections"]["rng"]
    assert "0000:00:1f.0" not in plugged["sections"]["rng-gone"]
    assert "removed device 31" in plugged["log"]


def test_the_guest_reports_success_of_each(plugged: dict[str, Any]) -> None:
    for event in ("CPU (1, 1", "CPU (1, 3", "PCI (31, 1", "PCI (31, 3"):
        assert f"{event}, 0)" in plugged["log"]


def test_the_guests_log_has_no_complaint(plugged: dict[str, Any]) -> None:
    assert plugged["sections"]["log"] == ""
