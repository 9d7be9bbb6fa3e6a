"""Mistakes that are found before anything is opened or made."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nemu.boot import loader
from nemu.config import MachineConfig, RunOptions
from nemu.config.chardev import ChardevConfig
from nemu.config.disk import DiskConfig
from nemu.config.fs import FsConfig
from nemu.config.net import NetConfig
from nemu.config.port import PortConfig
from nemu.config.vsock import VsockConfig
from nemu.errors import ConfigError
from nemu.validate import validate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``kernel`` and ``disk``; what the loader makes of a kernel is tested with the loader."""
    monkeypatch.setattr(loader, "check", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "disk").write_bytes(bytes(4096))
    return tmp_path


def refusal(options: RunOptions | None = None, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(MachineConfig(**{"kernel": "kernel", **values}), options or RunOptions())
    assert caught.value.status == 2
    return str(caught.value)


@pytest.mark.usefixtures("folder")
def test_a_right_machine_passes() -> None:
    disks = (DiskConfig("disk"),)
    validate(
        MachineConfig(kernel="kernel", disks=disks, nets=(NetConfig("user"),) * 2), RunOptions(report="r")
    )
    assert not os.path.exists("r")


def test_the_loader_judges_the_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*arguments: object) -> None:
        raise ConfigError("--kernel", "kernel", repr(arguments))

    monkeypatch.setattr(loader, "check", check)
    (folder / "initrd").touch()
    text = refusal(initrd="initrd", append="quiet", memory=1 << 30)
    assert text == "--kernel kernel: ('kernel', 'initrd', 'quiet', 1073741824)"


@pytest.mark.usefixtures("folder")
def test_kernel_and_initrd_must_be_readable_files() -> None:
    assert refusal(kernel="none") == "--kernel none: no such file or directory"
    assert refusal(kernel=".") == "--kernel .: is a directory, must be a file"
    assert refusal(kernel="x" * 5000).endswith("file name too long")
    assert refusal(initrd="none") == "--initrd none: no such file or directory"
    assert refusal(kernel="", initrd="kernel") == "--kernel: is needed with --initrd"


@pytest.mark.usefixtures("folder")
def test_missing_directory_and_device_are_no_disks() -> None:
    assert refusal(disks=(DiskConfig("none"),)) == "--disk none: no such file or directory"
    assert refusal(disks=(DiskConfig("."),)) == "--disk .: is a directory, must be a file"
    assert refusal(disks=(DiskConfig("/dev/null"),)).endswith("must be a raw image or a block device")


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_a_disk_of_odd_size_is_refused(folder: Path, size: int) -> None:
    (folder / "odd").write_bytes(bytes(size))
    assert f"has {size} bytes" in refusal(disks=(DiskConfig("odd"),))


def test_an_unreadable_disk_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != "disk")
    assert "cannot be read" in refusal(disks=(DiskConfig("disk"),))


@pytest.mark.usefixtures("folder")
def test_a_disk_that_cannot_be_written_may_be_readonly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert refusal(disks=(DiskConfig("disk"),)).endswith("cannot be written; add ,readonly=on")
    validate(MachineConfig(kernel="kernel", disks=(DiskConfig("disk", readonly=True),)), RunOptions())


def test_a_disk_given_twice_is_refused_unless_nobody_writes(folder: Path) -> None:
    (folder / "link").symlink_to("disk")
    (folder / "hard").hardlink_to("disk")
    for other in ("disk", "./disk", "link", "hard"):
        assert "is given twice" in refusal(disks=(DiskConfig("disk"), DiskConfig(other)))
        assert "is given twice" in refusal(disks=(DiskConfig("disk", readonly=True), DiskConfig(other)))
    twice = (DiskConfig("disk", readonly=True), DiskConfig("link", readonly=True))
    validate(MachineConfig(kernel="kernel", disks=twice), RunOptions())


@pytest.mark.usefixtures("folder")
def test_more_devices_than_the_bus_has_are_refused() -> None:
    assert "at most 31" in refusal(nets=(NetConfig("user"),) * 30)
    validate(MachineConfig(kernel="kernel", nets=(NetConfig("user"),) * 29), RunOptions())


@pytest.mark.usefixtures("folder")
def test_network_cards_do_not_share_a_tap_or_an_address() -> None:
    assert "given twice" in refusal(nets=(NetConfig("tap", tap="t0"), NetConfig("tap", tap="t0")))
    same = "52:54:00:00:00:01"
    assert f"mac={same} is given twice" in refusal(nets=(NetConfig("user", mac=same),) * 2)


@pytest.mark.usefixtures("folder")
def test_a_descriptor_must_be_open() -> None:
    descriptor = os.open("/dev/null", os.O_RDWR)
    validate(MachineConfig(kernel="kernel", nets=(NetConfig("fd", fd=descriptor),)), RunOptions())
    os.close(descriptor)
    refused = refusal(nets=(NetConfig("fd", fd=descriptor),))
    assert refused == f"--net fd={descriptor}: no such open descriptor was inherited"


@pytest.mark.usefixtures("folder")
def test_a_socket_device_needs_its_place_or_descriptor() -> None:
    assert refusal(vsock=VsockConfig(3, "no/s")) == "--vsock no/s: there is no directory no"
    refused = refusal(vsock=VsockConfig(3, vhostfd=1 << 19))
    assert refused == "--vsock vhostfd=524288: no such open descriptor was inherited"
    validate(MachineConfig(kernel="kernel", vsock=VsockConfig(3, "s")), RunOptions())


@pytest.mark.usefixtures("folder")
def test_both_consoles_cannot_have_the_same_place() -> None:
    assert "add --console null" in refusal(serial=ChardevConfig("stdio"))
    log = ChardevConfig("file", "log")
    assert "the console writes to this file" in refusal(console=log, serial=log)


@pytest.mark.usefixtures("folder")
def test_a_file_system_needs_a_directory_or_a_daemon_of_its_own() -> None:
    assert (
        refusal(filesystems=(FsConfig("t", dir="none"),)) == "--fs tag=t dir=none: no such file or directory"
    )
    assert refusal(filesystems=(FsConfig("t", dir="disk"),)) == "--fs tag=t dir=disk: must be a directory"
    assert refusal(filesystems=(FsConfig("t", socket="disk"),)).endswith("is no socket")
    assert "tag=t: is given twice" in refusal(filesystems=(FsConfig("t", dir="."), FsConfig("t", dir="/")))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        twice = (FsConfig("a", socket="s"), FsConfig("b", socket="./s"))
        assert "a virtiofsd serves one device" in refusal(filesystems=twice)
    validate(MachineConfig(kernel="kernel", filesystems=(FsConfig("t", dir="."),)), RunOptions())


@pytest.mark.usefixtures("folder")
def test_ports_do_not_share_a_name_or_a_place() -> None:
    first, log = PortConfig("a", "socket", "s"), ChardevConfig("file", "log")
    assert "name=a: is given twice" in refusal(ports=(first, PortConfig("a", "file", "f")))
    assert "name=b: has the socket of name=a" in refusal(ports=(first, PortConfig("b", "socket", "s")))
    assert refusal(ports=(PortConfig("a", "stdio"),)).endswith(
        "console has stdio already; add --console null"
    )
    refused = refusal(ports=(PortConfig("a", "file", "log"),), serial=log)
    assert refused.endswith("the serial port has file=log already")
    assert "at most 107 bytes" in refusal(ports=(PortConfig("a", "socket", "s" * 108),))
    assert "no directory" in refusal(ports=(PortConfig("a", "file", "no/f"),))
    assert "at most 30" in refusal(ports=tuple(PortConfig(f"p{n}", "file", f"f{n}") for n in range(31)))
    null = ChardevConfig("null")
    validate(MachineConfig(kernel="kernel", console=null, ports=(PortConfig("a", "stdio"),)), RunOptions())


@pytest.mark.usefixtures("folder")
def test_outputs_need_a_place() -> None:
    assert refusal(RunOptions(report="no/r")) == "--report no/r: there is no directory no"
    assert refusal(RunOptions(report=".")) == "--report .: is a directory, must be a file"
    assert "no directory" in refusal(console=ChardevConfig("file", "no/log"))
    assert "no directory" in refusal(console=ChardevConfig("socket", "no/s"))
    assert "at most 107 bytes" in refusal(console=ChardevConfig("socket", "s" * 108))
