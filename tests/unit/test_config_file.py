"""Configuration files: the command line's settings as TOML."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu import config_file
from nemu.config import MachineConfig, RunOptions, assemble
from nemu.config.chardev import ChardevConfig
from nemu.config.cpus import Cpus, Memory
from nemu.config.disk import DiskConfig
from nemu.config.net import NetConfig
from nemu.config.port import PortConfig
from nemu.config.vsock import VsockConfig
from nemu.errors import ConfigError


def written(folder: Path, text: str) -> str:
    file = folder / "vm.toml"
    file.write_text(text)
    return str(file)


def test_a_file_gives_the_same_settings_as_the_command_line(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        kernel = "vmlinuz"
        append = "console=hvc0"
        memory = "1G"
        cpus = 2
        rng = false
        disk = ["/a.img,readonly=on", { path = "b.img", serial = "b" }]
        net = "user"
        console = "file=log"
        port = ["name=a,socket=s", { name = "b", file = "f" }, "socket=/t,name=c", "name=d,stdio"]
        timeout = 1.5
        report = "run.json"
        """,
    )
    machine, options = assemble(config_file.load(file))
    assert machine == MachineConfig(
        kernel=f"{tmp_path}/vmlinuz",
        append="console=hvc0",
        memory=Memory(1 << 30, 1 << 30),
        cpus=Cpus(2, 2),
        rng=False,
        disks=(DiskConfig("/a.img", readonly=True), DiskConfig(f"{tmp_path}/b.img", serial="b")),
        nets=(NetConfig("user"),),
        console=ChardevConfig("file", f"{tmp_path}/log"),
        ports=(
            PortConfig("a", "socket", f"{tmp_path}/s"),
            PortConfig("b", "file", f"{tmp_path}/f"),
            PortConfig("c", "socket", "/t"),
            PortConfig("d", "stdio"),
        ),
    )
    assert options == RunOptions(timeout=1.5, report=f"{tmp_path}/run.json")


def test_sockets_of_back_ends_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        disk = ["vhost-user=d.sock,queues=2", { vhost-user = "e.sock" }]
        net = ["vhost-user=n.sock", "user"]
        vhost-user = ["type=18,socket=i.sock", { type = 18, socket = "/j.sock" }]
        """,
    )
    machine, _ = assemble(config_file.load(file))
    assert [disk.socket for disk in machine.disks] == [f"{tmp_path}/d.sock", f"{tmp_path}/e.sock"]
    assert [net.socket for net in machine.nets] == [f"{tmp_path}/n.sock", ""]
    assert [device.socket for device in machine.vhost_users] == [f"{tmp_path}/i.sock", "/j.sock"]


def test_disks_may_be_an_array_of_tables(tmp_path: Path) -> None:
    file = written(tmp_path, '[[disk]]\npath = "/a"\n[[disk]]\npath = "/b"\nreadonly = true\n')
    machine, _ = assemble(config_file.load(file))
    assert machine.disks == (DiskConfig("/a"), DiskConfig("/b", readonly=True))


@pytest.mark.parametrize(
    ("text", "socket"),
    [
        ('"cid=3,socket=s,,t"', "{folder}/s,t"),
        ('"cid=3,socket=/run/s"', "/run/s"),
        ('{cid = 3, socket = "s"}', "{folder}/s"),
    ],
)
def test_a_path_among_the_parts_starts_at_the_folder_too(tmp_path: Path, text: str, socket: str) -> None:
    machine, _ = assemble(config_file.load(written(tmp_path, f"vsock = {text}")))
    assert machine.vsock == VsockConfig(3, socket.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memroy = 1", "unknown key memroy; did you mean memory?"),
        ("disks = []", "unknown key disks; did you mean disk?"),
        ("qqqqqq = 1", "unknown key qqqqqq; known are kernel, initrd, append"),
        ("memory = ", "is not valid TOML"),
        ("a = 1\na = 2", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config_file.load(file)
    assert str(caught.value).startswith(f"--config {file}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memory = 1", "vm.toml: memory 1: must be 64M"),
        ("kernel = 5", "vm.toml: kernel 5: must be text"),
        ("kernel = ''", "vm.toml: kernel '': must be a path"),
        ("disk = [1]", "vm.toml: disk 1: must be text or a table"),
        ("disk = [{path = 1}]", "path must be text"),
        ("vsock = {cid = 3, socket = 1}", "vm.toml: vsock {'cid': 3, 'socket': 1}: socket must be text"),
        ("net = [[]]", "vm.toml: net []: must be text or a table"),
        ('kernel = "a\\u0000b"', "must not contain a NUL byte"),
    ],
)
def test_a_wrong_value_names_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(config_file.load(written(tmp_path, text)))
    assert problem in str(caught.value)


def test_missing_and_odd_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config_file.load(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="is a directory"):
        config_file.load(str(tmp_path))
    (tmp_path / "binary").write_bytes(os.urandom(64) + b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config_file.load(str(tmp_path / "binary"))


@given(st.binary(max_size=60))
def test_any_bytes_are_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    file.write_bytes(data)
    try:
        assemble(config_file.load(str(file)))
    except ConfigError:
        pass
