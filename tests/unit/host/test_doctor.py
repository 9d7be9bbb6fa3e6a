"""The doctor: each miss has a remedy, and the verdict follows from the findings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import pytest

from nemu.cli import doctor as command
from nemu.cli import main
from nemu.errors import HostError
from nemu.host import doctor, probe
from nemu.host.doctor import EMULATED, NATIVE, OPTIONAL, Diagnosis, Finding
from nemu.host.probe import Probe

FAST = Probe(True, True, "")
SLOW = Probe(True, False, "/dev/kvm only interprets")
NONE = Probe(False, False, "no /dev/kvm")

Patient = Callable[..., Diagnosis]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """``patient(probe, lacks)``: the diagnosis of a host with all programs except ``lacks``."""

    def diagnose(found: Probe, lacks: tuple[str, ...] = ()) -> Diagnosis:
        monkeypatch.setattr(probe, "probe", lambda: found)
        monkeypatch.setattr(shutil, "which", lambda name, path: None if name in lacks else f"/usr/bin/{name}")
        monkeypatch.setattr(doctor, "_capabilities", lambda: Finding("capabilities", NATIVE, True, "all"))
        monkeypatch.setattr(doctor, "_os_release", lambda: {"ID": "debian", "PRETTY_NAME": "Debian"})
        monkeypatch.setenv("NEMU_CACHE", str(tmp_path_factory.mktemp("cache")))
        return doctor.diagnose()

    return diagnose


def named(diagnosis: Diagnosis, name: str) -> Finding:
    return next(finding for finding in diagnosis.findings if finding.name == name)


def test_fast_kvm_is_enough(patient: Patient) -> None:
    assert patient(FAST, ("qemu-system-x86_64", "apt-get")).host == "native"


@pytest.mark.parametrize("found", [SLOW, NONE])
def test_without_fast_kvm_the_emulated_host_serves(patient: Patient, found: Probe) -> None:
    diagnosis = patient(found)
    assert diagnosis.host == "emulated"
    assert named(diagnosis, "kvm").detail == found.reason
    assert named(diagnosis, "kvm").remedy


@pytest.mark.parametrize("program", ["apt-get", "dpkg-deb"])
def test_the_emulated_host_needs_its_programs(patient: Patient, program: str) -> None:
    diagnosis = patient(NONE, (program,))
    assert diagnosis.host == ""
    assert named(diagnosis, program).remedy.startswith("sudo apt-get install ")


def test_what_only_some_settings_need_does_not_change_the_verdict(patient: Patient) -> None:
    assert patient(NONE, ("passt", "iasl", "strace", "gcc")).host == "emulated"


def test_every_miss_has_a_remedy_and_nothing_else_has(patient: Patient) -> None:
    everything = tuple(program.name for program in doctor._PROGRAMS)
    for finding in [*patient(NONE, everything).findings, *patient(FAST).findings]:
        assert finding.detail
        assert finding.ok == (finding.remedy == "")


def test_no_permission_for_kvm_is_told_from_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/kvm")
    assert "usermod -aG kvm" in doctor._kvm_remedy(usable=False)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert "usermod" not in doctor._kvm_remedy(usable=False)


def test_a_kvm_without_a_capability_is_no_native_host(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemu.arch.x86_64 import vm
    from nemu.kvm import handles

    class System:
        def close(self) -> None:
            pass

    def require(system: object) -> None:
        raise HostError("this kernel's KVM lacks KVM_CAP_IRQFD")

    monkeypatch.setattr(handles, "System", System)
    monkeypatch.setattr(vm, "require", require)
    capabilities = doctor._capabilities
    patient(FAST)
    monkeypatch.setattr(doctor, "_capabilities", capabilities)
    diagnosis = doctor.diagnose()
    assert diagnosis.host == "emulated"
    assert "KVM_CAP_IRQFD" in named(diagnosis, "capabilities").detail


def cached(kind: str) -> None:
    os.makedirs(os.path.join(os.environ["NEMU_CACHE"], kind, "amd64-1"))


def test_what_is_built_is_seen_in_the_cache(patient: Patient) -> None:
    assert "not built yet" in named(patient(FAST), "small guest").detail
    cached("guest")
    assert named(doctor.diagnose(), "small guest").detail == "built"


def test_an_emulated_host_in_the_cache_needs_no_packages(patient: Patient) -> None:
    assert patient(NONE, ("apt-get", "dpkg-deb")).host == ""
    cached("guest")
    cached("host")
    assert doctor.diagnose().host == "emulated"


def test_another_distribution_has_no_packages_for_the_emulated_host(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(NONE)
    monkeypatch.setattr(doctor, "_os_release", lambda: {"ID": "fedora", "PRETTY_NAME": "Fedora"})
    diagnosis = doctor.diagnose()
    assert diagnosis.host == ""
    assert named(diagnosis, "packages").detail == "Fedora"


def test_qemu_need_not_be_installed(patient: Patient) -> None:
    assert patient(NONE, ("qemu-system-x86_64",)).host == "emulated"


TWO = [Finding("kvm", NATIVE, True, "fast"), Finding("passt", OPTIONAL, False, "not found", "install it")]


@pytest.mark.parametrize(("host", "status"), [("native", 0), ("emulated", 0), ("", 1)])
def test_the_status_says_whether_nemu_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, status: int
) -> None:
    monkeypatch.setattr(command, "diagnose", lambda: Diagnosis(host, TWO))
    assert main(["doctor", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["host"] == host
    assert found["findings"][1] == {
        "name": "passt",
        "purpose": OPTIONAL,
        "ok": False,
        "detail": "not found",
        "remedy": "install it",
    }


def test_the_text_has_one_line_a_finding_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "diagnose", lambda: Diagnosis("native", TWO))
    main(["doctor"])
    assert capsys.readouterr().out.splitlines() == [
        NATIVE,
        "  ok      kvm    fast",
        OPTIONAL,
        "  missing passt  not found",
        "                 -> install it",
        "",
        "nemu run works here, on KVM.",
    ]


def test_this_host_is_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["host"] else 1)
    assert {EMULATED, NATIVE} <= {finding["purpose"] for finding in found["findings"]}
