"""The device benchmark without a machine: its options, its arithmetic, whose turn it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import devices
from nemu.errors import HostError
from nemu.host.emulated import CallError
from peers import devices as peers_devices
from peers import figures, results, turns
from peers import tools as guest_tools
from peers.devices import DEVICES, QEMU, QEMU_IOTHREAD, Device, Place
from peers.machines import OURS

BOOT = ["/kernel", "/initrd", "quiet"]
TOOLS = guest_tools.Tools("/kernel", "/initrd", "quiet", "/tools", "/root-initrd")


def fio_line(
    job: str, *, error: int = 0, read: tuple[int, int] = (0, 0), write: tuple[int, int] = (0, 0)
) -> str:
    """A line of fio's terse output: the fields of its documentation, counted from 1, that matter here."""
    fields = ["0"] * 131
    fields[0], fields[1], fields[2], fields[4] = "3", "fio-3.33", job, str(error)
    fields[6], fields[7] = map(str, read)  # fields 7 and 8: KiB/s and IOPS of reads
    fields[47], fields[48] = map(str, write)  # fields 48 and 49
    return ";".join(fields)


def iperf3(rate: float) -> str:
    return json.dumps({"start": {"a": "{"}, "end": {"sum_received": {"bits_per_second": rate}}}, indent=1)


def test_fio_gives_operations_of_small_blocks_and_mib_of_large_ones() -> None:
    text = "\n".join(
        [
            "some noise; of the guest",
            fio_line("randread_4k_d1", read=(4000, 1000)),
            fio_line("randwrite_4k_d32", read=(1, 1), write=(8000, 2000)),
            fio_line("read_1m_d1", read=(102400, 100)),
            fio_line("randread_4k_d1", read=(4400, 1100)),
        ]
    )
    assert results.parse("blk", text) == {
        "randread_4k_d1": [1000, 1100],
        "randwrite_4k_d32": [2000],
        "read_1m_d1": [100],
    }


def test_a_job_that_failed_is_an_error() -> None:
    with pytest.raises(HostError, match="blk: read_1m_d1 failed with error 5"):
        results.parse("blk", fio_line("read_1m_d1", error=5))


def test_networks_give_rates_both_ways_and_round_trips() -> None:
    one = f"{iperf3(5e6)}\n{iperf3(7e6)}\nsockperf: Summary: Latency is 250.000 usec\n"
    two = f"{iperf3(6e6)}\n{iperf3(8e6)}\nsockperf: Summary: Latency is 500.000 usec\n"
    assert results.parse("net", one + two) == {
        "send": [5, 6],
        "receive": [7, 8],
        "round_trips": [2000, 1000],
    }


@pytest.mark.parametrize(
    "text", ["", "tool: not found", iperf3(1e6), f"{iperf3(1e6)} {iperf3(1e6)}", '{"error": "refused"}', "{"]
)
def test_a_guest_that_measured_nothing_is_an_error_with_its_words(text: str) -> None:
    with pytest.raises(HostError, match="vhost_net"):
        results.parse("vhost_net", text)


def test_ratios_are_higher_when_ours_is_better() -> None:
    samples: figures.Samples = {"blk_x": {OURS: [2.0], QEMU: [4.0]}, "boot": {OURS: [2.0], QEMU: [4.0]}}
    assert figures.ratios(samples, ("boot",)) == {"blk_x_vs_qemu": 0.5, "boot_vs_qemu": 2.0}


@pytest.mark.parametrize("device", list(DEVICES))
@pytest.mark.parametrize("name", [OURS, QEMU, QEMU_IOTHREAD])
def test_every_machine_boots_the_same_guest_with_the_device_at_its_place(name: str, device: str) -> None:
    if name != OURS and name not in DEVICES[device].theirs:
        assert name == QEMU_IOTHREAD
        return
    argv = turns.command(name, BOOT, device, Place("/place", 7), "/tools")
    words = " ".join(argv)
    assert all(part in words for part in (*BOOT, "/tools"))
    assert "{" not in words
    assert "/place" in words or device in ("net", "vhost_net", "balloon")
    assert f"{turns.MEMORY}M" in words


@pytest.mark.parametrize("device", ["net", "vhost_net"])
def test_the_cards_of_all_machines_differ_and_carry_the_address_of_the_host(device: str) -> None:
    kind = {"net": 1, "vhost_net": 2}[device]
    for number in range(2):
        place = Place("", number)
        mac = f"02:{kind:02x}:0a:{kind:02x}:{number:02x}:01"  # 10.KIND.NUMBER.1
        assert all(mac in " ".join(turns.command(name, BOOT, device, place)) for name in (OURS, QEMU))


class FakeTrace:
    """A trace whose count grows by one with each look."""

    def __init__(self) -> None:
        self.looks = 0

    def exits(self) -> dict[int, int]:
        self.looks += 1
        return {2: self.looks, 6: 10}


GUEST = """
echo $NAME boots >>log
echo '#ready'; read -r go; echo $NAME sets up >>log
for round in 1 2; do echo '#ready'; read -r go; echo $NAME measures >>log; done
echo '%s'
echo '#end'
sleep 100
"""


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shells for guests; the file that they log to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(turns, "IMAGES", str(tmp_path))
    monkeypatch.setattr(turns, "Trace", lambda **_: nullcontext(FakeTrace()))
    monkeypatch.setattr(turns, "command", command)
    monkeypatch.setitem(DEVICES, "blk", Device((), {}, lambda place: nullcontext()))
    return tmp_path / "log"


def command(name: str, *_: object) -> list[str]:
    return ["env", f"NAME={name}", "sh", "-c", GUEST % fio_line("read_1m_d1", read=(1024, 1))]


def test_guests_measure_in_turn(machines: Path) -> None:
    found = turns.measure([OURS, QEMU], "blk", BOOT, "/tools")
    # One look before and one after each turn but the first.
    assert found == {name: {"figures": {"read_1m_d1": [1]}, "exits": 2, "failed": 0} for name in (OURS, QEMU)}
    log = machines.read_text().splitlines()
    steps = ["boots"] * 2 + ["sets up"] * 2 + ["measures"] * 4
    assert log == [f"{(OURS, QEMU)[number % 2]} {step}" for number, step in enumerate(steps)]


def test_a_guest_of_qemu_that_does_not_come_up_is_booted_again(
    machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its back end, too: it is gone with the first one."""
    started: list[str] = []

    @contextmanager
    def backend(place: Place) -> Iterator[None]:
        started.append(place.directory)
        yield

    monkeypatch.setitem(DEVICES, "blk", Device((), {}, backend))
    monkeypatch.setattr(turns, "command", lambda *_: ["true"] if len(started) == 1 else command(QEMU))
    found = turns.measure([QEMU], "blk", BOOT, "/tools")
    assert found[QEMU]["failed"] == 1
    assert len(set(started)) == 2


def test_a_guest_of_ours_that_does_not_come_up_is_an_error(
    machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "command", lambda *_: ["echo", "no kernel"])
    with pytest.raises(HostError, match="nemu did not measure blk: 'no kernel"):
        turns.measure([OURS], "blk", BOOT, "/tools")


def test_a_program_beside_the_vmm_that_ends_or_is_missing_is_named() -> None:
    with (
        pytest.raises(HostError, match="sh does not listen: b'no socket"),
        peers_devices.program(["sh", "-c", "echo no socket"], lambda: False),
    ):
        pass
    with (
        pytest.raises(HostError, match="no-such-daemon is not installed"),
        peers_devices.program(["no-such-daemon"], lambda: True),
    ):
        pass


def test_images_have_no_holes(tmp_path: Path) -> None:
    with peers_devices.image(str(tmp_path / "image"), 1):
        found = (tmp_path / "image").stat()
    assert (found.st_size, found.st_blocks * 512 >= 1 << 20) == (1 << 20, True)


@pytest.mark.parametrize("script", ["guest.sh", "root.sh"])
def test_scripts_of_the_guest_are_well_formed(script: str) -> None:
    path = Path(guest_tools.__file__).parent / script
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


def test_every_device_is_in_the_script_of_the_guest() -> None:
    text = (Path(guest_tools.__file__).parent / guest_tools.SCRIPT).read_text()
    assert all(f"\n{name}() {{" in text for name in DEVICES)


def test_a_report_has_ratios_exits_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = devices.Run(TOOLS, ["blk"])
    run.add("blk_read_1m_d1", OURS, [100.0, 120.0])
    run.add("blk_read_1m_d1", QEMU, [110.0])
    run.add(devices.BOOT, OURS, [4.0])
    run.add(devices.BOOT, QEMU, [6.0])
    run.exits["blk"] = {OURS: 0, QEMU: 3}
    run.failures[QEMU] = 1
    devices.report(run, 2, str(tmp_path / "out.json"))
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["ratios"] == {"blk_read_1m_d1_vs_qemu": 1.0, "virtiofs_boot_vs_qemu": 1.5}
    assert document["exits"] == {"blk": {OURS: 0, QEMU: 3}}
    assert document["did_not_come_up"] == {QEMU: 1}
    printed = capsys.readouterr().out
    assert "exits while blk moved data: nemu 0, qemu 3" in printed


def test_options_choose_what_is_measured() -> None:
    found = devices.options(["--only", "blk", "--only", "balloon", "--rounds", "2"])
    assert (found.only, found.rounds, found.seconds) == (["blk", "balloon"], 2, 1)
    assert devices.options([]).only == [
        *(name for name in DEVICES if name != "balloon"),
        "virtiofs_boot",
        "balloon",
    ]


@pytest.mark.parametrize("words", [["--only", "floppy"], ["--rounds", "0"], ["--seconds", "0.5"]])
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        devices.options(words)
    assert error.value.code == 2
    assert words[0] in capsys.readouterr().err


class BrokenHost:
    """An emulated host in which one device cannot be measured."""

    def call(self, function: str, arguments: dict[str, object], **_: object) -> object:
        if arguments.get("device") == "pmem":
            raise CallError("inside:\nTraceback\nHostError: no pmem")
        if function == "peers.single:root_boot":
            return 5.0
        assert function == "peers.turns:measure"
        return {OURS: {"figures": {"x": [1.0]}, "exits": 0, "failed": 0}}

    def __enter__(self) -> BrokenHost:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_what_fails_is_named_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "Host", lambda **_: BrokenHost())
    monkeypatch.setattr(guest_tools, "ensure", lambda: TOOLS)
    names = ["blk", "pmem", "virtiofs_boot"]
    words = [word for name in names for word in ("--only", name)]
    assert devices.main([*words, "--rounds", "2", "--json", str(tmp_path / "out.json")]) == 1
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["figures"] == {
        "blk_x": {OURS: [1.0]},
        "virtiofs_boot": {OURS: [5.0, 5.0], QEMU: [5.0, 5.0]},
    }
    assert document["errors"] == {"pmem": "HostError: no pmem"}
    assert "devices.py: pmem: HostError: no pmem" in capsys.readouterr().err
