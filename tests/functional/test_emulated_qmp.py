"""Management of a machine in the emulated host, from out here: its sockets, its name, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemu.qmp.client import QmpClient
from nemu.qmp.errors import QmpError

PATIENCE = 60.0  # seconds
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "run").mkdir(mode=0o700)
    return {**os.environ, "PYTHONPATH": SOURCE, "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def nemu(environment: dict[str, str], *argv: str) -> str:
    """What a command prints, errors too."""
    command = [sys.executable, "-m", "nemu", *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """One that waits for its first instruction."""
    options = ["--name", "outer", "--qmp", str(tmp_path / "q"), "--console", f"socket={tmp_path / 'c'}"]
    command = [sys.executable, "-m", "nemu", "run", "--host", "emulated", "--start", "paused", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (tmp_path / "run/nemu/outer.qmp").exists():  # the last one that is opened
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def connect(path: Path) -> QmpClient:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(path))
    return QmpClient(connection)


def test_clients_out_here_steer_the_machine_inside(
    machine: subprocess.Popen[bytes], tmp_path: Path, environment: dict[str, str]
) -> None:
    with connect(tmp_path / "q") as one, connect(tmp_path / "run/nemu/outer.qmp") as other:
        assert one.execute("query-name") == {"name": "outer"}
        assert other.execute("query-status") == {"running": False, "status": "prelaunch"}
        (console,) = one.execute("query-chardev")
        assert console["filename"] == f"unix:{tmp_path / 'c'}"
        # A descriptor of this host means nothing there, and the client is told.
        with pytest.raises(QmpError, match="No file descriptor supplied"):
            one.execute("getfd", {"fdname": "x"}, [0])
        (seen,) = json.loads(nemu(environment, "ps", "--json"))
        assert (seen["name"], seen["pid"], seen["status"]) == ("outer", machine.pid, "prelaunch")
        assert nemu(environment, "stop", "--timeout", "0", "outer") == ""
        other.wait_event("SHUTDOWN")
        assert machine.wait(PATIENCE) == 0
    assert not list(tmp_path.glob("run/nemu/*"))
    assert not (tmp_path / "q").exists()


def test_what_a_killed_run_leaves_is_cleaned_up_by_ps(
    machine: subprocess.Popen[bytes], tmp_path: Path, environment: dict[str, str]
) -> None:
    machine.send_signal(signal.SIGKILL)
    machine.wait(PATIENCE)
    assert (tmp_path / "run/nemu/outer.qmp").exists()
    assert nemu(environment, "ps") == "NAME  PID  STATUS  CPUS  MEMORY\n"
    assert not (tmp_path / "run/nemu/outer.qmp").exists()
