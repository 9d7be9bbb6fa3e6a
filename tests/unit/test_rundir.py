"""The running machines of a user: names are taken once, and what the dead left is removed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nemu import rundir
from nemu.errors import ConfigError, HostError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nemu"


def stale(path: Path) -> None:
    """A socket as a killed process leaves it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_name_is_taken_until_its_machine_ends(folder: Path) -> None:
    assert rundir.names() == []
    first, second = rundir.claim("b"), rundir.claim("a")
    assert rundir.names() == ["a", "b"]
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match=r"--name a: a running machine has this name"):
        rundir.claim("a")
    assert rundir.names() == ["a", "b"], "the other one still has it"
    first.close()
    second.close()
    assert os.listdir(folder) == []
    rundir.claim("a").close()


def test_what_a_killed_machine_left_is_no_machine(folder: Path) -> None:
    rundir.claim("x").close()
    stale(folder / "x.qmp")
    stale(folder / "y.qmp")
    (folder / "notes.txt").touch()
    taken = rundir.claim("x")
    assert rundir.names() == ["x"]
    assert sorted(os.listdir(folder)) == ["notes.txt", "x.qmp"]
    taken.close()


def test_a_machine_whose_backlog_is_full_runs(folder: Path) -> None:
    busy = rundir.claim("busy")
    clients = []
    for _ in range(8):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        clients.append(client)
        try:
            client.connect(rundir.path_of("busy"))
        except BlockingIOError:
            break
    else:
        pytest.fail("the backlog has no end")
    assert rundir.names() == ["busy"]
    for client in clients:
        client.close()
    busy.close()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_directory_that_others_can_reach_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    for use in (rundir.names, lambda: rundir.claim("x")):
        with pytest.raises(HostError, match="must be yours alone"):
            use()
    assert os.listdir(folder) == []


def test_a_directory_that_is_a_link_or_of_another_user_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")
    with pytest.raises(HostError, match="cannot use the run directory"):
        rundir.claim("x")
    folder.unlink()
    folder.mkdir(mode=0o700)
    os.chown(folder, os.geteuid() + 1, -1)
    with pytest.raises(HostError, match="must be yours alone"):
        rundir.claim("x")


def test_without_the_variable_there_is_a_place_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert rundir.folder() == "/tmp/nemu-1234"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rundir.path_of("a") == "/run/nemu/a.qmp"
