"""Which sockets a run opens, when, and what is left of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fakes.qmp import Client, FakeSession
from nemu.config import RunOptions
from nemu.config.qmp import QmpConfig
from nemu.errors import ConfigError
from nemu.management import Management
from nemu.syntax import machine_name
from nemu.validate import qmp


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nemu"


def manage(options: RunOptions) -> tuple[Management, FakeSession]:
    session = FakeSession()
    management = Management(session, options)  # type: ignore[arg-type]
    management.open()
    return management, session


def listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def test_a_nameless_machine_gets_its_socket_once_the_loop_runs(folder: Path) -> None:
    management, session = manage(RunOptions())
    assert listed(folder) == []
    session.loop.settle()
    assert listed(folder) == [f"vm-{os.getpid()}.qmp"]
    management.close()
    assert listed(folder) == []


def test_a_named_one_has_it_at_once_and_keeps_others_out(folder: Path) -> None:
    management, _ = manage(RunOptions(name="mine"))
    assert listed(folder) == ["mine.qmp"]
    with pytest.raises(ConfigError, match="--name mine"):
        manage(RunOptions(name="mine"))
    management.close()


def test_a_nameless_machine_without_a_place_runs_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.touch()
    management, session = manage(RunOptions())
    session.loop.settle()
    management.emit("STOP")
    management.close()
    assert capsys.readouterr().err == ""


def test_off_leaves_nothing(folder: Path) -> None:
    management, session = manage(RunOptions(name="mine", qmp=(QmpConfig("off"),)))
    session.loop.settle()
    assert listed(folder) == []
    management.close()


def test_every_kind_of_socket_serves_clients(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "inherited"))
    listening.listen()
    connected, mine = socket.socketpair()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configs = (
        QmpConfig("unix", path=str(tmp_path / "q")),
        QmpConfig("fd", fd=listening.detach()),
        QmpConfig("fd", fd=connected.detach()),
        QmpConfig("tcp", port=port),
        QmpConfig("off"),
    )
    management, session = manage(RunOptions(qmp=configs))
    tcp, unix, inherited = socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    tcp.connect(("127.0.0.1", port))
    unix.connect(str(tmp_path / "q"))
    inherited.connect(str(tmp_path / "inherited"))
    for end in (tcp, unix, inherited, mine):
        client = Client(session, end)
        assert "QMP" in client.receive()
        client.execute("qmp_capabilities")
        assert client.execute("query-name") == {"name": "fake"}
    management.emit("POWERDOWN")
    management.close()
    assert not (tmp_path / "q").exists()
    for end in (tcp, unix, inherited, mine):
        end.close()


def test_one_that_cannot_be_opened_leaves_no_other_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "file").touch()
    configs = (QmpConfig("unix", path=str(tmp_path / "q")), QmpConfig("unix", path=str(tmp_path / "file")))
    with pytest.raises(ConfigError, match=r"--qmp .*file: exists and is not a socket"):
        manage(RunOptions(qmp=configs))
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (QmpConfig("unix", path="/no/such/q"), "there is no directory /no/such"),
        (QmpConfig("unix", path="/tmp/" + "q" * 120), "at most 107 bytes"),
        (QmpConfig("fd", fd=999), "no such open descriptor"),
        (QmpConfig("fd", fd=0), "is not a socket"),
    ],
)
def test_what_cannot_work_is_said_beforehand(config: QmpConfig, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        qmp.check((config,))


def test_a_socket_given_twice_is_refused(tmp_path: Path) -> None:
    config = QmpConfig("unix", path=str(tmp_path / "q"))
    with pytest.raises(ConfigError, match="is given twice"):
        qmp.check((config, config))


@pytest.mark.parametrize("text", ["/run/q", "fd=3", "tcp=127.0.0.1:4444", "off"])
def test_a_setting_is_shown_as_it_was_written(text: str) -> None:
    assert str(QmpConfig.read(text)) == text


@pytest.mark.parametrize("text", ["", "fd=", "fd=-1", "tcp=0.0.0.0:80", "tcp=127.0.0.1:0", "tcp=1", "a\0b"])
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        QmpConfig.read(text)


@pytest.mark.parametrize("name", ["", "a/b", ".x", "-x", "a b", "ä", "x" * 51, "..", "a\n"])
def test_a_name_is_good_for_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 50 letters"):
        machine_name(name)
    assert machine_name("Web-1.a_b") == "Web-1.a_b"


def test_an_inherited_socket_must_be_a_stream() -> None:
    datagrams, other = socket.socketpair(type=socket.SOCK_DGRAM)
    with datagrams, other, pytest.raises(ConfigError, match=r"--qmp fd=\d+: is not a stream socket"):
        manage(RunOptions(qmp=(QmpConfig("fd", fd=datagrams.fileno()),)))
