"""All ACPI tables of the machine, found from the RSDP as a guest finds them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fakes.iasl import iasl, without_compiler
from fakes.irq import FakeIrq
from fakes.pages import FakePages
from nemu.acpi import dsdt, tables
from nemu.arch.x86_64 import acpi, layout
from nemu.devices.ged import GenericEventDevice
from nemu.devices.power import RESET_VALUE
from nemu.devices.pvpanic import PvPanic
from nemu.devices.serial import Serial
from nemu.interfaces import AmlSource
from nemu.memory import GuestRam

GOLDEN = Path(__file__).parents[2] / "golden"
PCI64 = (1 << 39, 1 << 40)
NODES = [acpi.NumaNode([0], [(0, 1 << 20)]), acpi.NumaNode([1], [(1 << 20, 1 << 20)])]


def platform_devices() -> list[AmlSource]:
    return [
        GenericEventDevice(FakePages(), FakeIrq(), gpa=layout.GED, gsi=layout.GSI_GED),
        PvPanic(FakePages(), gpa=layout.PVPANIC, report=lambda event: None),
        Serial(FakeIrq(), lambda data: None, lambda: None, port=layout.SERIAL_PORT, gsi=layout.GSI_SERIAL),
    ]


def built(
    cpus: int = 2,
    pci64: tuple[int, int] = PCI64,
    nodes: list[acpi.NumaNode] | None = None,
    ioapic_gsi_base: int = layout.IOAPIC_GSI_BASE,
) -> dict[str, bytes]:
    """Each table by signature, "RSDP" among them, as a guest reads them."""
    ram = GuestRam([(0, 2 << 20)])
    try:
        rsdp_gpa = acpi.build(
            ram,
            cpus=range(cpus),
            max_cpus=cpus,
            pci64=pci64,
            terms=[dsdt.processors(cpus)],
            devices=platform_devices(),
            nodes=nodes or (),
            ioapic_gsi_base=ioapic_gsi_base,
        )
        return {"RSDP": ram.read(rsdp_gpa, 36), **walked(ram, rsdp_gpa)}
    finally:
        ram.close()


def walked(ram: GuestRam, rsdp_gpa: int) -> dict[str, bytes]:
    def table(gpa: int) -> bytes:
        assert layout.ACPI_TABLES < gpa < layout.ACPI_TABLES_END
        assert gpa % 16 == 0
        (size,) = struct.unpack("<I", ram.read(gpa + 4, 4))
        return ram.read(gpa, size)

    xsdt = table(struct.unpack_from("<Q", ram.read(rsdp_gpa, 36), 24)[0])
    found = [xsdt, *(table(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]))]
    by_name = {data[:4].decode(): data for data in found}
    assert len(by_name) == len(found)
    by_name["DSDT"] = table(struct.unpack_from("<Q", by_name["FACP"], 140)[0])
    return by_name


def test_every_sum_is_zero() -> None:
    found = built(nodes=NODES)
    assert set(found) == {"RSDP", "XSDT", "FACP", "DSDT", "APIC", "MCFG", "ERST", "SRAT"}
    for name, data in found.items():
        assert sum(data) % 256 == 0, name
    assert sum(found["RSDP"][:20]) % 256 == 0  # the first 20 bytes have a sum of their own


def test_the_root_pointer_has_an_xsdt_and_no_rsdt() -> None:
    signature, _, oem, revision, rsdt, length = struct.unpack_from("<8sB6sBII", built()["RSDP"])
    assert (signature, oem, revision, rsdt, length) == (b"RSD PTR ", b"NEMU  ", 2, 0, 36)


def test_the_dsdt_is_the_golden_one() -> None:
    golden = bytes.fromhex((GOLDEN / "dsdt.hex").read_text())
    assert without_compiler(built()["DSDT"]) == without_compiler(golden)


def test_iasl_makes_the_golden_dsdt_of_the_quoted_asl(tmp_path: Path) -> None:
    (tmp_path / "dsdt.asl").write_text((GOLDEN / "dsdt.asl").read_text())
    iasl("dsdt.asl", cwd=tmp_path)
    golden = bytes.fromhex((GOLDEN / "dsdt.hex").read_text())
    assert without_compiler((tmp_path / "dsdt.aml").read_bytes()) == without_compiler(golden)


@pytest.mark.parametrize(
    "found", [built(nodes=NODES), built(cpus=255, pci64=(1 << 40, 1 << 40))], ids=["two-nodes", "255-cpus"]
)
def test_iasl_takes_every_table_apart_and_makes_the_same_again(
    found: dict[str, bytes], tmp_path: Path
) -> None:
    names = [name.lower() for name in found if name != "RSDP"]  # iasl knows no RSDP file
    for name in names:
        (tmp_path / f"{name}.dat").write_bytes(found[name.upper()])
    iasl("-d", *(f"{name}.dat" for name in names), cwd=tmp_path)
    for name in names:
        iasl(f"{name}.dsl", cwd=tmp_path)
        again = (tmp_path / f"{name}.aml").read_bytes()
        assert without_compiler(again) == without_compiler(found[name.upper()]), name


def test_the_fadt_is_hardware_reduced_and_has_no_legacy() -> None:
    facp = built()["FACP"]
    assert len(facp) == 276
    assert (facp[8], facp[131]) == (6, 5)
    (iapc_boot_arch,) = struct.unpack_from("<H", facp, 109)
    assert iapc_boot_arch == 1 << 2 | 1 << 5  # no VGA, no CMOS RTC; not 8042, not legacy devices
    (flags,) = struct.unpack_from("<I", facp, 112)
    assert flags == 1 << 0 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20
    assert facp[36:109] == bytes(73)  # SCI, SMI port, PM1, PM timer, GPE, C states
    assert facp[148:244] == bytes(96)  # and their extended addresses
    assert facp[268:] == b"NEMU\0\0\0\0"


@pytest.mark.parametrize(
    ("field", "gpa"), [(116, layout.POWER + 2), (244, layout.POWER), (256, layout.POWER + 1)]
)
def test_the_fadt_points_at_byte_registers(field: int, gpa: int) -> None:
    facp = built()["FACP"]
    assert struct.unpack_from("<BBBBQ", facp, field) == (0, 8, 0, 1, gpa)
    assert facp[128] == RESET_VALUE


@pytest.mark.parametrize("base", [layout.IOAPIC_GSI_BASE, 0])
def test_the_madt_lists_each_cpu_and_the_ioapic(base: int) -> None:
    madt = built(cpus=255, ioapic_gsi_base=base)["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 0)
    for cpu in range(255):
        assert struct.unpack_from("<BBBBI", madt, 44 + 8 * cpu) == (0, 8, cpu, cpu, 1)
    assert struct.unpack_from("<BBBBII", madt, 44 + 8 * 255) == (1, 12, 0, 0, 0xFEC0_0000, base)


def test_mcfg_names_no_bus_that_is_not_there() -> None:
    assert struct.unpack_from("<QQHBB", built()["MCFG"], 36) == (0, layout.ECAM, 0, 0, layout.PCI_LAST_BUS)


def test_srat_gives_cpus_and_memory_their_node() -> None:
    srat = built(nodes=NODES)["SRAT"]
    cpu0, memory0 = srat[48:64], srat[64:104]
    cpu1, memory1 = srat[104:120], srat[120:160]
    assert [cpu[:8] for cpu in (cpu0, cpu1)] == [struct.pack("<BBBBI", 0, 16, n, n, 1) for n in (0, 1)]
    assert [struct.unpack_from("<BBIHQQII", memory) for memory in (memory0, memory1)] == [
        (1, 40, n, 0, n << 20, 1 << 20, 0, 1) for n in (0, 1)
    ]
    assert len(srat) == 160


def test_a_machine_without_a_64_bit_window_has_none() -> None:
    qword_descriptor = b"\x8a\x2b\x00"
    assert qword_descriptor in built()["DSDT"]
    assert qword_descriptor not in built(pci64=(1 << 40, 1 << 40))["DSDT"]


def test_a_device_that_is_absent_is_not_described() -> None:
    ged, pvpanic, _ = platform_devices()
    table = dsdt.dsdt((), [ged, pvpanic])
    assert b"GED_" in table
    assert b"COM1" not in table


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 64"):
        tables.lay_out(0, 64, dsdt=bytes(64), fadt=lambda gpa: b"", others=[])
