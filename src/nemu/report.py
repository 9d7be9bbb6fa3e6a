"""``--report``: what a run cost, as JSON."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemu.errors import ConfigError
from nemu.memory import MEMFD_NAME

if TYPE_CHECKING:
    from nemu.machine import Machine, Outcome


@dataclass(slots=True)
class Report:
    """Gathered over every machine (reboots included) of one run."""

    first_run: float = 0.0  # time.monotonic() before the first KVM_RUN
    reboots: int = -1
    by_kind: Counter[str] = field(default_factory=Counter)
    by_register: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    pss_kib: int = 0
    devices: list[dict[str, str]] = field(default_factory=list)
    balloon: dict[str, Any] | None = None

    def add(self, machine: Machine) -> None:
        """Take the figures of ``machine``, which has ended and is not closed yet."""
        self.reboots += 1
        self.by_kind.update(machine.retired_exits)
        for vcpu in machine.vcpus:
            self.by_kind.update(vcpu.exits)
        for bus in (machine.memory_bus, machine.port_bus):
            self.by_register.update(bus.counts_by_register())
            self.unknown += bus.unknown
        if not self.first_run:
            self.first_run = min((vcpu.first_run for vcpu in machine.vcpus if vcpu.first_run), default=0.0)
        self.pss_kib = own_pss_kib({region.host_address for region in machine.ram.regions})
        self.devices = [{"name": name, "place": place} for name, place in machine.devices]
        if machine.balloon:
            self.balloon = {
                "target_bytes": machine.balloon.target,
                "actual_bytes": machine.balloon.actual,
                "statistics": dict(machine.balloon.statistics),
            }

    def to_dict(self, outcome: Outcome | None) -> dict[str, Any]:
        now, age = time.monotonic(), process_age()
        return {
            "outcome": outcome.name.lower() if outcome else "error",
            "reboots": max(self.reboots, 0),
            "times": {
                "first_kvm_run_ms": round(1000 * (self.first_run - now + age), 1) if self.first_run else None,
                "total_s": round(age, 3),
            },
            "exits": {
                "total": self.by_kind.total(),
                "by_kind": dict(self.by_kind),
                "by_register": dict(self.by_register.most_common()),
            },
            "unknown_accesses": self.unknown,
            "memory": {"pss_kib": self.pss_kib},
            "devices": self.devices,
            **({"balloon": self.balloon} if self.balloon else {}),
        }

    def write(self, path: str, outcome: Outcome | None) -> None:
        import json

        try:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(self.to_dict(outcome), file, indent=2)
                file.write("\n")
        except OSError as error:
            raise ConfigError("--report", path, str(error.strerror)) from error


def process_age() -> float:
    """Seconds since this process was started, to 10 ms (proc(5), field 22 of stat)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def own_pss_kib(guest: Collection[int] = ()) -> int:
    """This process's proportional share of memory in KiB, the guest's aside.

    That is its RAM, and what else is mapped from one of the addresses ``guest`` on (persistent memory).
    """
    total = 0
    is_guest_ram = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Pss:"):
                total += 0 if is_guest_ram else int(line.split()[1])
            elif "-" in line.partition(" ")[0]:  # the head of a mapping: "start-end perms ... path"
                is_guest_ram = f"memfd:{MEMFD_NAME}" in line or int(line.partition("-")[0], 16) in guest
    return total
