"""Mistakes that are found before anything is opened or made."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nemu.boot import loader
from nemu.config import MachineConfig, RunOptions
from nemu.config.balloon import BalloonConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.cpus import Memory
from nemu.config.disk import DiskConfig
from nemu.config.fs import FsConfig
from nemu.config.net import Forward, NetConfig
from nemu.config.pmem import PmemConfig
from nemu.config.port import PortConfig
from nemu.config.vhost_user import VhostUserConfig
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
    text = refusal(initrd="initrd", append="quiet", memory=Memory(1 << 30, 1 << 30))
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
    assert refusal(disks=(DiskConfig("/dev/null"),)).endswith("must be an image or a block device")


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


def test_the_format_of_an_image_is_not_what_a_guest_may_have_written(folder: Path) -> None:
    (folder / "q").write_bytes(b"QFI\xfb" + bytes(508))
    assert "begins as a qcow2 image; add ,format=qcow2, or ,format=raw" in refusal(disks=(DiskConfig("q"),))
    assert "is no qcow2 image; add ,format=raw" in refusal(disks=(DiskConfig("disk", format="qcow2"),))
    for kind in ("raw", "qcow2"):
        validate(MachineConfig(kernel="kernel", disks=(DiskConfig("q", format=kind),)), RunOptions())


def test_a_back_end_is_a_socket_and_serves_one_device(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        disk, net, other = (
            DiskConfig("", socket="s"),
            NetConfig("vhost-user", socket="s"),
            VhostUserConfig(2, "s"),
        )
        config = MachineConfig(kernel="kernel", disks=(disk,), nets=(net,), vhost_users=(other,))
        validate(config, RunOptions())
        for twice in (
            {"disks": (disk, disk._replace())},
            {"nets": (net, net)},
            {"vhost_users": (other, other)},
        ):
            assert "is given twice" in refusal(**twice)
    for path, problem in (("disk", "is no socket"), ("none", "no such file or directory")):
        assert refusal(disks=(DiskConfig("", socket=path),)) == f"--disk vhost-user={path}: {problem}"
        assert refusal(nets=(NetConfig("vhost-user", socket=path),)) == f"--net vhost-user={path}: {problem}"
        assert refusal(vhost_users=(VhostUserConfig(2, path),)) == f"--vhost-user socket={path}: {problem}"


def test_a_place_on_the_scsi_bus_is_for_one_disk(folder: Path) -> None:
    (folder / "other").write_bytes(bytes(512))
    disks = (
        DiskConfig("disk", bus="scsi", scsi_id=1, lun=0),
        DiskConfig("other", bus="scsi", scsi_id=1, lun=0),
    )
    assert refusal(disks=disks) == "--disk other: scsi-id=1,lun=0 is given twice"


@pytest.mark.usefixtures("folder")
def test_scsi_disks_take_one_place_on_the_bus_together() -> None:
    disks = tuple(DiskConfig("disk", readonly=True, bus="scsi") for _ in range(40))
    validate(MachineConfig(kernel="kernel", disks=disks, nets=(NetConfig("user"),) * 28), RunOptions())
    assert "at most 31" in refusal(disks=disks, nets=(NetConfig("user"),) * 29)


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
    validate(MachineConfig(kernel="kernel", nets=(NetConfig("fd", fds=(descriptor,)),)), RunOptions())
    os.close(descriptor)
    refused = refusal(nets=(NetConfig("fd", fds=(descriptor,)),))
    assert refused == f"--net fd={descriptor}: no such open descriptor was inherited"
    refused = refusal(nets=(NetConfig("fd", fds=(0,), vhostfds=(descriptor,)),))
    assert refused == f"--net vhostfd={descriptor}: no such open descriptor was inherited"
    refused = refusal(nets=(NetConfig("fd", fds=(0, descriptor)),))
    assert refused == f"--net fds={descriptor}: no such open descriptor was inherited"


@pytest.mark.usefixtures("folder")
def test_a_descriptor_has_one_use() -> None:
    assert "descriptor 0 is given twice" in refusal(nets=(NetConfig("fd", fds=(0,), vhostfds=(0,)),))
    assert "descriptor 1 is given twice" in refusal(
        nets=(NetConfig("fd", fds=(0, 1)), NetConfig("fd", fds=(1,)))
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "taken_at"), [("127.0.0.1", "127.0.0.1"), ("", "127.0.0.1"), ("", "::")])
def test_a_port_that_is_forwarded_must_be_free(kind: str, address: str, taken_at: str) -> None:
    family = socket.AF_INET6 if ":" in taken_at else socket.AF_INET
    type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, type_) as taken:
        taken.bind((taken_at, 0))
        if kind == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        forward = Forward(kind, address, port, 80)
        text = refusal(nets=(NetConfig("user", forward=(forward,)),))
    assert text == f"--net user,forward={forward}: cannot listen there: address already in use"
    validate(MachineConfig(kernel="kernel", nets=(NetConfig("user", forward=(forward,)),)), RunOptions())


@pytest.mark.usefixtures("folder")
def test_a_foreign_address_cannot_be_forwarded_from() -> None:
    forward = Forward("tcp", "192.0.2.1", 8080, 80)
    text = refusal(nets=(NetConfig("user", forward=(forward,)),))
    assert text == f"--net user,forward={forward}: cannot listen there: cannot assign requested address"


@pytest.mark.usefixtures("folder")
def test_two_network_cards_do_not_share_a_port_of_the_host() -> None:
    one, other = Forward("tcp", "", 18080, 80), Forward("tcp", "127.0.0.1", 18080, 81)
    text = refusal(nets=(NetConfig("user", forward=(one,)), NetConfig("user", forward=(other,))))
    assert text == f"--net user,forward={other}: another network card has forward={one}"


@pytest.mark.usefixtures("folder")
def test_a_socket_device_needs_its_place_or_descriptor() -> None:
    assert refusal(vsock=VsockConfig(3, "no/s")) == "--vsock no/s: there is no directory no"
    refused = refusal(vsock=VsockConfig(3, vhostfd=1 << 19))
    assert refused == "--vsock vhostfd=524288: no such open descriptor was inherited"
    validate(MachineConfig(kernel="kernel", vsock=VsockConfig(3, "s")), RunOptions())


@pytest.mark.usefixtures("folder")
def test_the_socket_of_a_socket_device_leaves_room_for_the_ports() -> None:
    validate(MachineConfig(kernel="kernel", vsock=VsockConfig(3, "s" * 96)), RunOptions())
    assert refusal(vsock=VsockConfig(3, "s" * 97)).endswith("must have at most 96 bytes")


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


@pytest.mark.parametrize("size", [0, 1, 4096, (2 << 20) + 4096])
def test_persistent_memory_has_whole_2_mib(folder: Path, size: int) -> None:
    (folder / "odd").write_bytes(b"")
    os.truncate(folder / "odd", size)
    text = refusal(pmems=(PmemConfig("odd"),))
    assert text.startswith(f"--pmem odd: has {size} bytes, must be whole 2 MiB (truncate -s ")
    os.truncate(folder / "odd", int(text.split("truncate -s ")[1].split()[0]))
    validate(MachineConfig(kernel="kernel", pmems=(PmemConfig("odd"),)), RunOptions())


@pytest.mark.usefixtures("folder")
def test_persistent_memory_needs_a_file() -> None:
    assert refusal(pmems=(PmemConfig("none"),)) == "--pmem none: no such file or directory"
    assert refusal(pmems=(PmemConfig("."),)) == "--pmem .: is a directory, must be a file"
    assert refusal(pmems=(PmemConfig("/dev/null"),)).endswith("must be an image or a block device")


@pytest.mark.usefixtures("folder")
def test_a_balloon_leaves_something_to_the_guest() -> None:
    assert (
        refusal(memory=Memory(1 << 30, 1 << 30), balloon=BalloonConfig(size=1 << 30))
        == "--balloon 1G: must be less than the 1G of --memory"
    )
    validate(
        MachineConfig(kernel="kernel", memory=Memory(1 << 30, 1 << 30), balloon=BalloonConfig(size=1 << 29)),
        RunOptions(),
    )


@pytest.mark.usefixtures("folder")
def test_a_seed_needs_its_files() -> None:
    assert "has no file user-data" in refusal(cloud_init=".")
