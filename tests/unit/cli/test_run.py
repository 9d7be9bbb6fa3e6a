"""``nemu run``: which settings win, which host runs the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from nemu import validate
from nemu.cli import main, parser, run
from nemu.config import MachineConfig, RunOptions, Setting, settings
from nemu.config.cpus import Cpus, Memory
from nemu.config.disk import DiskConfig


class Probe(NamedTuple):
    usable: bool
    fast: bool
    reason: str


class Hosts:
    """Stands in for the modules that run machines; keeps what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.asked: list[tuple[str, MachineConfig, RunOptions]] = []
        self.probe = Probe(True, True, "")
        self.replace("nemu.session", run=self.runner("native", 3))
        self.replace("nemu.host.emulated", run=self.runner("emulated", 4))
        self.replace("nemu.host.probe", probe=lambda: self.probe)
        guest = SimpleNamespace(kernel="small-kernel", initrd="small-initrd", append="quiet")
        self.replace("nemu.host.guest", ensure=lambda: guest)
        monkeypatch.setattr(validate, "validate", lambda config, options: None)

    def replace(self, name: str, **attributes: object) -> None:
        module = SimpleNamespace(**attributes)
        self.monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        self.monkeypatch.setattr(sys.modules[parent], last, module, raising=False)

    def runner(self, name: str, status: int) -> Callable[[MachineConfig, RunOptions], int]:
        def start(config: MachineConfig, options: RunOptions) -> int:
            self.asked.append((name, config, options))
            return status

        return start


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    import nemu.host

    assert nemu.host
    return Hosts(monkeypatch)


def settings_of(*argv: str) -> tuple[MachineConfig, RunOptions]:
    return run.configure(parser.parse(["run", *argv]))


def test_options_make_a_machine() -> None:
    argv = "--kernel k --initrd=i --memory 1G --cpus 4 --disk a --disk b,readonly=on --timeout 5"
    assert settings_of(*argv.split(), "--append", "console=hvc0 quiet") == (
        MachineConfig(
            kernel="k",
            initrd="i",
            append="console=hvc0 quiet",
            memory=Memory(1 << 30, 1 << 30),
            cpus=Cpus(4, 4),
            disks=(DiskConfig("a"), DiskConfig("b", readonly=True)),
        ),
        RunOptions(timeout=5),
    )


def test_an_option_of_two_words_arrives() -> None:
    config, _ = settings_of("--vhost-user", "type=2,socket=s", "--vhost-user", "type=18,socket=t")
    assert [device.socket for device in config.vhost_users] == ["s", "t"]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('kernel = "k"\nmemory = "1G"\ncpus = 4\ndisk = ["/a", "/b"]\nhost = "native"\n')
    config, options = settings_of("--config", str(file), "--cpus", "2", "--disk", "c")
    assert config == MachineConfig(
        kernel=f"{tmp_path}/k", memory=Memory(1 << 30, 1 << 30), cpus=Cpus(2, 2), disks=(DiskConfig("c"),)
    )  # fmt: skip
    assert options.host == "native"


def test_the_emulated_host_hands_the_machine_over(tmp_path: Path) -> None:
    described = MachineConfig(kernel="k", cpus=Cpus(3, 3), disks=(DiskConfig("d", serial="s"),))
    (tmp_path / "machine").write_text(described.to_json())
    config, options = settings_of("--machine-json", f"{tmp_path}/machine", "--host", "native")
    assert (config, options) == (described, RunOptions(host="native"))


def test_fast_kvm_runs_the_machine(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--kernel", "k"]) == 3
    assert hosts.asked == [("native", MachineConfig(kernel="k"), RunOptions())]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("probe", [Probe(True, False, "slow"), Probe(False, False, "no /dev/kvm")])
def test_without_fast_kvm_one_line_says_so(
    hosts: Hosts, capsys: pytest.CaptureFixture[str], probe: Probe
) -> None:
    hosts.probe = probe
    assert main(["run", "--kernel", "k"]) == 4
    assert [name for name, _, _ in hosts.asked] == ["emulated"]
    text = f"nemu: no fast KVM here ({probe.reason}): using the emulated host\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("host", ["native", "emulated"])
def test_a_named_host_is_not_probed(hosts: Hosts, host: str) -> None:
    hosts.probe = Probe(False, False, "must not matter")
    main(["run", "--kernel", "k", "--host", host])
    assert [name for name, _, _ in hosts.asked] == [host]


def test_without_a_kernel_the_small_guest_boots(hosts: Hosts) -> None:
    main(["run", "--append", "-- ls", "--cpus", "2"])
    expected = MachineConfig(
        kernel="small-kernel", initrd="small-initrd", append="quiet -- ls", cpus=Cpus(2, 2)
    )
    assert hosts.asked[0][1] == expected


def test_the_small_guest_has_its_own_least_memory(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--memory", "64M"]) == 2
    assert capsys.readouterr().err == "nemu: --memory 64M: the small guest needs at least 80M\n"
    assert hosts.asked == []


# What is written behind "--" is no option.
@pytest.mark.parametrize(
    "setting", [one for one in settings() if not one.words], ids=lambda setting: setting.option
)
def test_every_option_reaches_the_settings(setting: Setting) -> None:
    arguments = parser.build(["run"]).parse_args(["run", f"--{setting.option}", "value"])
    assert hasattr(arguments, setting.option)
