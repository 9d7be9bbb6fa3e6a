"""``nemu plug``, ``unplug`` and ``resize`` on a server that plays a guest which does what it is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.plug import PlugSession
from nemu.cli import main
from nemu.qmp.sockets import Endpoint

MIB = 1 << 20


class Guest(threading.Thread):
    """Turns the loop, and lets go of what it is asked for unless it is stubborn."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        import socket

        self.session = PlugSession()
        self.stubborn = False
        self.done = False
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        self.session.server.open(Endpoint(listener))

    def run(self) -> None:
        while not self.done:
            self.session.loop.turn(0.02)
            for kind in self.session.controllers:
                event = self.session.event(kind)
                if event and event[1] == 3 and self.stubborn:
                    self.session.report(kind, event[0], 3, 1)
                elif event and event[1] == 3:
                    self.session.eject(kind, event[0])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "qmp")


@pytest.fixture
def guest(path: str) -> Iterator[Guest]:
    guest = Guest(path)
    guest.start()
    yield guest
    guest.done = True
    guest.join()
    guest.session.close()


def test_a_disk_comes_and_goes(
    guest: Guest,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "d.img").write_bytes(bytes(MIB))
    monkeypatch.chdir(tmp_path)
    assert main(["plug", path, "--disk", "d.img,readonly=on", "--rng"]) == 0
    names = capsys.readouterr().out.split()
    assert names == ["virtio-blk0", "virtio-rng1"]
    (block,) = guest.session.peripherals.blocks()
    assert (block.path, block.readonly) == (os.path.join(tmp_path, "d.img"), True)
    assert main(["unplug", path, *names]) == 0
    assert guest.session.peripherals.blocks() == []


def test_a_guest_that_refuses_is_told_of(guest: Guest, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    guest.stubborn = True
    assert main(["unplug", path, "virtio-rng0"]) != 0
    assert "uses virtio-rng0 and does not let go" in capsys.readouterr().err


def test_cpus_and_memory_follow(guest: Guest, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resize", path, "--cpus", "3", "--memory", "512M"]) == 0
    assert list(guest.session.machine.cpus.present) == [0, 1, 2]
    (found,) = guest.session.machine.dimms.present.values()
    assert found[1].size == 256 * MIB
    assert main(["resize", path, "--memory", "640M"]) == 0
    assert main(["resize", path, "--cpus", "1", "--memory", "256M"]) == 0
    assert list(guest.session.machine.cpus.present) == [0]
    assert guest.session.machine.dimms.present == {}
    assert guest.session.inventory.stock.memory == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["resize", "--cpus", "5"], "--cpus 5: this machine has room for 4"),
        (["resize", "--cpus", "x"], "--cpus x: must be a whole number"),
        (["resize", "--memory", "300M"], "multiple of 128M"),
        (["resize"], "needs --cpus N or --memory SIZE"),
        (["plug"], "needs one of --disk"),
        (["plug", "--disk", "nope"], "no such file"),
        (["unplug", "nope"], "Device 'nope' not found"),
    ],
)
def test_mistakes(
    guest: Guest, path: str, argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argv[0], path, *argv[1:]]) != 0
    assert text in capsys.readouterr().err
    assert guest.session.inventory.stock.memory == {}
    assert list(guest.session.machine.cpus.present) == [0]
