"""The figures of a run, with our own memory measured against what the test takes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.bus import FakeHandler
from nemu.balloon import Balloon
from nemu.bus.address_space import AddressSpace
from nemu.errors import ConfigError
from nemu.interfaces import Window
from nemu.machine import Outcome
from nemu.memory import GuestRam, host_address, map_image
from nemu.report import Report, own_pss_kib, process_age

MIB = 1 << 20


def machine(first_run: float = 0.0, exits: dict[str, int] | None = None) -> Any:
    bus, ports = AddressSpace(), AddressSpace()
    bus.place(Window("power", 0x1000, FakeHandler()), 0xFEA0_0000)
    bus.write(0xFEA0_0000, 1, 0)
    bus.read(0x1234, 1)
    ports.read(0x70, 1)
    vcpu = SimpleNamespace(exits=exits or {"mmio": 2, "io": 1}, first_run=first_run)
    return SimpleNamespace(
        retired_exits=Counter(),
        vcpus=[vcpu, SimpleNamespace(exits={"mmio": 1}, first_run=first_run + 1)],
        memory_bus=bus,
        port_bus=ports,
        devices=[("power", "0xfea00000")],
        balloon=None,
        ram=SimpleNamespace(regions=[]),
        lock=threading.RLock(),
    )


def test_the_figures_of_one_machine() -> None:
    report = Report()
    report.add(machine(first_run=time.monotonic()))
    result = report.to_dict(Outcome.POWER_OFF)
    assert result["outcome"] == "power_off"
    assert result["reboots"] == 0
    assert result["exits"]["total"] == 4
    assert result["exits"]["by_kind"] == {"mmio": 3, "io": 1}
    assert result["exits"]["by_register"] == {
        "power reg0x0 write": 1,
        "unknown 0x1234 read": 1,
        "unknown 0x70 read": 1,
    }
    assert result["unknown_accesses"] == 2
    assert result["devices"] == [{"name": "power", "place": "0xfea00000"}]
    assert 0 < result["times"]["first_kvm_run_ms"] <= 1000 * result["times"]["total_s"] + 20
    assert result["memory"]["pss_kib"] > 1024


def test_a_reboot_adds_up_and_the_first_start_counts() -> None:
    report = Report()
    report.add(machine(first_run=100.0))
    report.add(machine(first_run=200.0))
    result = report.to_dict(Outcome.RESET)
    assert (result["reboots"], result["exits"]["total"], result["unknown_accesses"]) == (1, 8, 4)
    assert report.first_run == 100.0


def test_a_run_that_never_started_has_no_figures_but_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report().write(str(path), None)
    result = json.loads(path.read_text())
    assert (result["outcome"], result["reboots"], result["times"]["first_kvm_run_ms"]) == ("error", 0, None)
    assert result["exits"] == {"total": 0, "by_kind": {}, "by_register": {}}


@pytest.mark.parametrize("where", ["missing/report.json", "."])
def test_a_report_that_cannot_be_written_is_one_clear_error(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="--report"):
        Report().write(str(tmp_path / where), Outcome.POWER_OFF)


def test_the_age_of_the_process_grows_with_the_clock() -> None:
    first = process_age()
    time.sleep(0.05)
    assert 0.04 <= process_age() - first < 5
    assert first >= 0


def test_memory_is_ours_and_not_the_guests() -> None:
    before = own_pss_kib()
    ram = GuestRam([(0, 64 * MIB)])
    for gpa in range(0, 64 * MIB, 4096):
        ram.write(gpa, b"x")
    guest = own_pss_kib() - before
    ours = bytearray(b"x" * 32 * MIB)
    both = own_pss_kib() - before
    ram.close()
    assert guest < 8 * 1024
    assert both - guest > 24 * 1024
    assert len(ours) == 32 * MIB


def test_a_file_that_is_the_guests_memory_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 32 * MIB)
    before = own_pss_kib()
    with path.open("r+b") as file:
        mapping = map_image(file.fileno(), 32 * MIB, readonly=False)
        assert bytes(mapping).count(b"x") == 32 * MIB
        assert own_pss_kib() - before > 24 * 1024
        assert own_pss_kib({host_address(mapping)}) - before < 8 * 1024
        mapping.close()


def test_the_balloon_is_in_the_report_of_a_machine_that_has_one() -> None:
    report = Report()
    with_balloon = machine()
    with_balloon.balloon = Balloon(64 * MIB, 48 * MIB)
    with_balloon.balloon.learned({"free_memory": 5})
    report.add(with_balloon)
    assert report.to_dict(Outcome.POWER_OFF)["balloon"] == {
        "target_bytes": 48 * MIB,
        "actual_bytes": 64 * MIB,
        "statistics": {"free_memory": 5},
    }
    other = Report()
    other.add(machine())
    assert "balloon" not in other.to_dict(Outcome.POWER_OFF)
