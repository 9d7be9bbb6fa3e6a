"""The AML of hot-plug, against ASL written by hand."""

from __future__ import annotations

from pathlib import Path

from fakes.iasl import iasl, without_compiler
from fakes.pages import FakePages
from nemu.acpi import aml, dsdt, tables
from nemu.arch.x86_64 import acpi
from nemu.devices.hotplug import HotplugController, memory_device

GOLDEN = Path(__file__).parents[2] / "golden"
GPA = 0xFEA0_5000


def made() -> bytes:
    controller = HotplugController(
        "PLG1",
        FakePages(),
        gpa=GPA,
        targets={0: "\\_SB.C000", 1: "\\_SB.C001"},
        notify=lambda: None,
        ejected=lambda slot: None,
        reported=lambda ost: None,
    )
    root = aml.device("PCI0", aml.name("_HID", aml.eisaid("PNP0A08")))
    terms = [
        root,
        controller.aml(),
        acpi.hotplug_processors(controller, 2),
        memory_device(controller, 0, "M000", GPA),
        dsdt.pci_slots(controller, [1]),
    ]
    return tables.table(b"DSDT", 2, aml.scope("_SB", *terms))


def test_iasl_makes_the_same_of_the_quoted_asl(tmp_path: Path) -> None:
    (tmp_path / "hotplug.asl").write_text((GOLDEN / "hotplug.asl").read_text())
    iasl("-on", "hotplug.asl", cwd=tmp_path)  # full paths stay as they are
    assert without_compiler((tmp_path / "hotplug.aml").read_bytes()) == without_compiler(made())
