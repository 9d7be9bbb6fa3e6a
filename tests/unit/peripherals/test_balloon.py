"""The balloon over several machines: it asks each for the same and tells management of changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fakes.loop import FakeLoop
from nemu.config import MachineConfig
from nemu.config.balloon import BalloonConfig
from nemu.config.cpus import Memory
from nemu.memory import GuestRam
from nemu.peripherals.balloon import BalloonDevice
from nemu.peripherals.kind import Run

MIB = 1 << 20


def test_a_machine_hears_of_its_own_balloon_and_the_next_is_asked_for_the_same() -> None:
    loop = FakeLoop()
    config = MachineConfig(memory=Memory(256 * MIB, 256 * MIB), balloon=BalloonConfig(size=64 * MIB))
    heard: list[tuple[str, dict[str, Any]]] = []
    run = Run(config, loop, lambda: None, lambda name, **data: heard.append((name, data)))  # type: ignore[arg-type]
    peripheral = BalloonDevice(run, config.balloon)
    for _ in range(2):
        machine: Any = SimpleNamespace(ram=GuestRam([(0, MIB)]), loop=loop)
        device: Any = peripheral.device(machine)
        assert machine.balloon.target == 192 * MIB
        device.write_config(4, 4, 16384)
        device.write_config(4, 4, 16384)
        device.write_config(12, 4, 1)
        machine.ram.close()
    full, some = {"actual": 256 * MIB}, {"actual": 192 * MIB}
    assert heard == [("BALLOON_CHANGE", some), ("BALLOON_CHANGE", full), ("BALLOON_CHANGE", some)]
    peripheral.close()
