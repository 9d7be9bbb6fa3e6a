"""The boot benchmark without a boot: its arguments, its arithmetic and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import boot
from nemu.errors import ConfigError, HostError
from nemu.host.guest import Guest
from peers import boots, figures
from peers.machines import ABOUT, MACHINES, OURS
from peers.machines import Guest as Booted

BOOTED = Booted("/k", "/i", "console=hvc0 quiet", "/d", "tap7")


def samples() -> figures.Samples:
    return {
        "init": {OURS: [2.0, 1.0, 9.0], "microvm": [4.0, 8.0, 1.0], "q35": [8.0]},
        "pss": {OURS: [14.0], "microvm": [], "q35": [56.0]},
    }


def test_ratios_are_ours_over_theirs_by_medians() -> None:
    assert figures.ratios(samples()) == {
        "init_vs_microvm": 0.5,
        "init_vs_q35": 0.25,
        "pss_vs_q35": 0.25,  # and none for a machine without a figure
    }


def test_a_figure_that_is_zero_for_them_has_no_ratio() -> None:
    assert figures.ratios({"idle": {OURS: [0.0], "q35": [0.0]}}) == {}


def test_the_json_has_every_value_of_both_sides() -> None:
    document = json.loads(figures.to_json(samples(), rounds=3))
    assert document["figures"] == samples()
    assert document["medians"]["init"] == {OURS: 2.0, "microvm": 4.0, "q35": 8.0}
    assert document["ratios"]["init_vs_microvm"] == 0.5
    assert document["rounds"] == 3


def test_the_table_has_a_row_a_figure_and_a_column_a_machine() -> None:
    lines = figures.table(samples(), {"init": "start", "pss": "memory"}, list(MACHINES)).splitlines()
    assert lines[0].split() == list(MACHINES)
    assert lines[1].split() == "start 2 (1 to 9) 4 (1 to 8) 8".split()
    assert lines[2].split() == ["memory", "14", "-", "56"]


def test_a_report_names_the_machines_and_the_boots_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = boot.Run(Guest("/k", "/i", "quiet"), "/v")
    for name in MACHINES:
        run.add("exits", name, 10 if name == OURS else 1000)
    run.failures["microvm"] = 2
    boot.report(run, 1, str(tmp_path / "out.json"))
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["ratios"] == {"exits_vs_microvm": 0.01, "exits_vs_q35": 0.01}
    assert document["did_not_come_up"] == {"microvm": 2}
    printed = capsys.readouterr().out
    assert "2 boots did not come up" in printed
    assert all(text in printed for text in ABOUT.values())


def test_a_json_file_that_cannot_be_written_is_named() -> None:
    run = boot.Run(Guest("/k", "/i", "quiet"), "/v")
    with pytest.raises(ConfigError, match="--json /no/such/file"):
        boot.report(run, 1, "/no/such/file")


def test_rounds_and_json_are_options() -> None:
    found = boot.options(["--rounds", "3", "--json", "x.json"])
    assert (found.rounds, found.json) == (3, "x.json")


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_bad_rounds_are_refused(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        boot.options(["--rounds", rounds])
    assert error.value.code == 2
    assert "--rounds" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(MACHINES))
def test_every_machine_gets_the_same_guest(name: str) -> None:
    words = " ".join(MACHINES[name](BOOTED))
    for part in (BOOTED.kernel, BOOTED.initrd, BOOTED.append, BOOTED.disk, BOOTED.tap, "256"):
        assert part in words


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("12  1700000000.5 epoll_wait(3, [], 64, -1) = 0", 1700000000.5),
        ("12  1700000000.5 ioctl(15, KVM_RUN <unfinished ...>", 1700000000.5),
        ("12  1700000000.5 <... ioctl resumed>) = 0", None),
        ("12  1700000000.5 --- SIGSTOP {} ---", None),
        ("", None),
    ],
)
def test_a_system_call_counts_once_in_the_log_of_strace(line: str, at: float | None) -> None:
    assert boots._timestamp(line) == at


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(HostError, match="no-such-vmm is not installed"), boots.running(["no-such-vmm"]):
        pass
