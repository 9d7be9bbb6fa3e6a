"""Settings: how they are written, what is refused, and that one description serves all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu import syntax
from nemu.arch.x86_64 import layout
from nemu.config import MIB, Given, MachineConfig, RunOptions, assemble, settings
from nemu.config import machine as machine_config
from nemu.config.chardev import ChardevConfig
from nemu.config.disk import DiskConfig
from nemu.config.fs import FsConfig
from nemu.config.net import NetConfig
from nemu.config.port import PortConfig
from nemu.config.vsock import VsockConfig
from nemu.errors import ConfigError


def machine(**values: Any) -> MachineConfig:
    return assemble({key: Given(f"--{key}", value) for key, value in values.items()})[0]


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        assemble({key: Given(f"--{key}", value) for key, value in values.items()})
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("65536K", 64 * MIB),
        ("2G", 2048 * MIB),
        ("1.5G", 1536 * MIB),
        ("1T", 1 << 40),
        (" 2G ", 2048 * MIB),
    ],
)
def test_memory_is_written_as_in_qemu(text: str, size: int) -> None:
    assert machine(memory=text).memory == size


def test_a_file_may_give_memory_as_a_number_of_mib() -> None:
    assert machine(memory=256).memory == 256 * MIB


ODD_SIZES = ["0", "M", "63M", "-1", "+512", "512MB", "1e3", "0x200", "512.M", ".5G", "1.0000001G", "65537K"]
ODD_SIZES += ["4096T", "1_000", "٥١٢", "inf", "2 G", "512M\n0", "9" * 400, ""]


@pytest.mark.parametrize("text", ODD_SIZES)
def test_an_odd_memory_size_is_refused_with_what_would_be_right(text: str) -> None:
    message = refusal(memory=text)
    assert message.startswith("--memory ")
    assert "must be" in message
    assert len(message) < 250


@pytest.mark.parametrize("value", [True, 1.5, None, [], {}])
def test_memory_of_a_wrong_type_in_a_file_is_refused(value: object) -> None:
    assert "must be a size" in refusal(memory=value)


@given(st.integers(0, 1 << 50))
def test_a_shown_size_is_read_back(size: int) -> None:
    shown = syntax.show_size(size)
    assert shown == f"{size} bytes" or syntax.size(shown) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert syntax.size(text) >= 0
    except ValueError:
        pass


def test_limits_agree_with_the_machine() -> None:
    assert machine_config.MAX_CPUS == layout.MAX_CPUS
    assert machine_config.MIN_MEMORY == layout.MIN_MEMORY
    assert layout.ram_regions(machine_config.MAX_MEMORY)[-1][1] > 0


@pytest.mark.parametrize("cpus", ["0", "256", "-1", "1.0", "", "two", "9" * 5000, True])
def test_cpus_outside_1_to_255_are_refused(cpus: object) -> None:
    assert refusal(cpus=cpus).endswith("must be a whole number from 1 to 255")


@pytest.mark.parametrize("cpus", [1, 255])
def test_cpus_at_the_limits_are_taken(cpus: int) -> None:
    assert machine(cpus=str(cpus)).cpus == cpus


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("a.img", DiskConfig("a.img")),
        ("a.img,readonly=on", DiskConfig("a.img", readonly=True)),
        ("a.img,readonly=off,serial=root,queues=2", DiskConfig("a.img", serial="root", queues=2)),
        ("a,,b=c.img", DiskConfig("a,b=c.img")),
        ("a.img,serial=x,,y", DiskConfig("a.img", serial="x,y")),
    ],
)
def test_a_disk_is_a_path_with_properties(text: str, disk: DiskConfig) -> None:
    assert machine(disk=[text]).disks == (disk,)


def test_disks_keep_their_order() -> None:
    assert [disk.path for disk in machine(disk=["b", "a", "c"]).disks] == ["b", "a", "c"]


def test_a_disk_may_be_a_table() -> None:
    table = {"path": "a.img", "readonly": True, "queues": 3}
    assert machine(disk=[table]).disks == (DiskConfig("a.img", readonly=True, queues=3),)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be a path"),
        (",readonly=on", "must be a path"),
        ("a,readony=on", "did you mean readonly?"),
        ("a,zzz=1", "known are path, readonly, serial, queues"),
        ("a,readonly", "'readonly' must be KEY=VALUE"),
        ("a,readonly=yes", "readonly must be on or off"),
        ("a,readonly=on,readonly=on", "readonly is given twice"),
        ("a,serial=" + "x" * 21, "at most 20 characters"),
        ("a,serial=\u00e9", "printable ASCII"),
        ("a,queues=0", "from 1 to 16"),
        ("a\0b", "NUL"),
        ({"readonly": True}, "needs a path"),
        (7, "must be text or a table"),
    ],
)
def test_a_wrong_disk_is_refused(value: object, problem: str) -> None:
    message = refusal(disk=[value])
    assert message.startswith("--disk ")
    assert problem in message


@pytest.mark.parametrize(
    ("value", "net"),
    [
        ("user", NetConfig("user")),
        ("tap=tap0", NetConfig("tap", tap="tap0")),
        ("fd=7", NetConfig("fd", fd=7)),
        ("user,mac=52:54:00:AB:00:01", NetConfig("user", mac="52:54:00:ab:00:01")),
        ({"tap": "tap0"}, NetConfig("tap", tap="tap0")),
        ({"user": True}, NetConfig("user")),
    ],
)
def test_a_network_card_names_its_backend(value: object, net: NetConfig) -> None:
    assert machine(net=[value]).nets == (net,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be tap=NAME, fd=N or user"),
        ("bridge=br0", "must be tap=NAME, fd=N or user"),
        ("tap=", "interface name"),
        ("tap=0123456789abcdef", "interface name of 1 to 15 bytes"),
        ("tap=../x", "interface name"),
        ("tap=a b", "interface name"),
        ("fd=-1", "fd must be a whole number"),
        ("fd=x", "fd must be a whole number"),
        ("user,tap=t0", "must be tap=NAME, fd=N or user"),
        ("user,mac=01:00:5e:00:00:01", "unicast"),
        ("user,mac=00:00:00:00:00:00", "unicast"),
        ("user,mac=52:54:00:12:34", "six hexadecimal bytes"),
        ({"mac": "52:54:00:12:34:56"}, "must be tap=NAME, fd=N or user"),
        ({"user": False}, "user can only be on"),
    ],
)
def test_a_wrong_network_card_is_refused(value: object, problem: str) -> None:
    assert problem in refusal(net=[value])


def test_consoles_go_where_they_are_told() -> None:
    assert machine(console="null").console == ChardevConfig("null")
    assert machine(console="file=a=b").console == ChardevConfig("file", "a=b")
    assert machine(console="socket=s").console == ChardevConfig("socket", "s")
    assert machine(serial="file=log").serial == ChardevConfig("file", "log")


@pytest.mark.parametrize("text", ["", "off", "file", "file=", "stdio=x", "pty", "null=1"])
def test_a_wrong_console_is_refused_with_the_forms(text: str) -> None:
    assert refusal(console=text).endswith("must be stdio, null, file=PATH or socket=PATH")


def test_the_serial_port_has_no_socket() -> None:
    assert refusal(serial="socket=s").endswith("must be off, stdio or file=PATH")


@pytest.mark.parametrize(
    ("value", "port"),
    [
        ("name=agent.0,socket=s", PortConfig("agent.0", "socket", "s")),
        ("file=a,,b,name=log", PortConfig("log", "file", "a,b")),
        ("name=x,stdio", PortConfig("x", "stdio")),
        ({"name": "x", "socket": "s"}, PortConfig("x", "socket", "s")),
        ({"name": "x", "stdio": True}, PortConfig("x", "stdio")),
    ],
)
def test_a_port_has_a_name_and_a_place(value: object, port: PortConfig) -> None:
    assert machine(port=[value]).ports == (port,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be KEY=VALUE"),
        ("name=x", "with one of socket=PATH, file=PATH and stdio"),
        ("socket=s", "must be name=NAME"),
        ("name=x,socket=s,file=f", "with one of"),
        ("name=x,pty", "'pty' must be KEY=VALUE"),
        ("name=x,sockt=s", "did you mean socket?"),
        ("name=,stdio", "name must have 1 to 64 printable ASCII characters"),
        ("name=" + "x" * 65 + ",stdio", "name must have 1 to 64"),
        ("name=a/b,stdio", "slash"),
        ("name=ä,stdio", "printable ASCII"),
        ({"name": "x", "stdio": False}, "with one of"),
        ({"name": 7, "stdio": True}, "name must be text"),
    ],
)
def test_a_wrong_port_is_refused(value: object, problem: str) -> None:
    message = refusal(port=[value])
    assert message.startswith("--port ")
    assert problem in message


@pytest.mark.parametrize(
    ("value", "fs"),
    [
        ("tag=t,dir=/d", FsConfig("t", dir="/d")),
        ("dir=a,,b,tag=t,readonly=on,cache=never", FsConfig("t", dir="a,b", readonly=True, cache="never")),
        ("tag=t,socket=s", FsConfig("t", socket="s")),
        ({"tag": "t", "dir": "d", "readonly": True}, FsConfig("t", dir="d", readonly=True)),
    ],
)
def test_a_file_system_has_a_tag_and_a_place(value: object, fs: FsConfig) -> None:
    assert machine(fs=[value]).filesystems == (fs,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("t", "'t' must be KEY=VALUE"),
        ("tag=t", "must be tag=TAG with socket=SOCKET or dir=DIR"),
        ("dir=d", "must be tag=TAG with"),
        ("tag=t,dir=d,socket=s", "must be tag=TAG with"),
        ("tag=t,socket=s,readonly=on", "has its own"),
        ("tag=t,dir=d,cache=none", "cache must be auto, always or never"),
        ("tag=,dir=d", "tag must have 1 to 36 bytes"),
        ("tag=" + "ä" * 19 + ",dir=d", "tag must have 1 to 36 bytes"),
        ("tag=t,dir=", "dir must be a path"),
        ("tag=t,dax=on,dir=d", "unknown key dax"),
    ],
)
def test_a_wrong_file_system_is_refused(value: object, problem: str) -> None:
    message = refusal(fs=[value])
    assert message.startswith("--fs ")
    assert problem in message


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "", "1s", "1e999"])
def test_a_wrong_timeout_is_refused(text: str) -> None:
    assert "must be a number of seconds" in refusal(timeout=text)


def test_options_of_the_run_are_apart_from_the_machine() -> None:
    values = {"timeout": Given("--timeout", "1.5"), "host": Given("--host", "native")}
    assert assemble(values) == (MachineConfig(), RunOptions(timeout=1.5, host="native"))


def test_a_very_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal(rng="x" * 100_000)) < 200


@pytest.mark.parametrize(
    ("value", "vsock"),
    [
        ("cid=3", VsockConfig(3)),
        ("cid=4294967294,vhostfd=9", VsockConfig(0xFFFF_FFFE, vhostfd=9)),
        ("cid=5,socket=a,,b", VsockConfig(5, "a,b")),
        ({"cid": 7, "socket": "s"}, VsockConfig(7, "s")),
    ],
)
def test_a_socket_device_has_an_address_and_a_host_side(value: object, vsock: VsockConfig) -> None:
    assert machine(vsock=value).vsock == vsock


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be KEY=VALUE"),
        ("3", "must be KEY=VALUE"),
        ("cid=2", "cid must be a whole number from 3 to 4294967294"),
        ("cid=4294967295", "from 3 to 4294967294"),
        ("socket=s", "needs cid=N"),
        ("cid=3,socket=", "socket must be a path"),
        ("cid=3,socket=s,vhostfd=4", "socket or vhostfd, not both"),
        ("cid=3,vhostfd=-1", "vhostfd must be"),
        ("cid=3,port=1", "unknown key port"),
        (3, "must be text or a table"),
    ],
)
def test_a_wrong_socket_device_is_refused(value: object, problem: str) -> None:
    message = refusal(vsock=value)
    assert message.startswith("--vsock ")
    assert problem in message


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
machines = st.builds(
    MachineConfig,
    kernel=names,
    append=names,
    memory=st.integers(64, 1 << 20).map(lambda mib: mib * MIB),
    cpus=st.integers(1, 255),
    disks=st.lists(st.builds(DiskConfig, path=names, readonly=st.booleans()), max_size=3).map(tuple),
    nets=st.lists(st.builds(NetConfig, backend=st.just("tap"), tap=names), max_size=3).map(tuple),
    rng=st.booleans(),
    ports=st.lists(st.builds(PortConfig, name=names, kind=st.just("file"), path=names), max_size=3).map(
        tuple
    ),
    filesystems=st.lists(st.builds(FsConfig, tag=names, dir=names), max_size=3).map(tuple),
    vsock=st.none() | st.builds(VsockConfig, cid=st.integers(3, 9), socket=names),
    console=st.builds(ChardevConfig, kind=st.just("file"), path=names),
)


@given(machines)
def test_a_machine_survives_json(described: MachineConfig) -> None:
    assert MachineConfig.from_json(described.to_json()) == described


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"disks": 1}', "null", '{"disks": [{"x": 1}]}'])
def test_json_that_is_no_machine_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a machine"):
        MachineConfig.from_json(text)


def test_every_field_is_a_setting_with_help() -> None:
    options = [setting.option for setting in settings()]
    fields = dataclasses.fields(MachineConfig) + dataclasses.fields(RunOptions)
    assert len(options) == len(set(options)) == len(fields)
    assert all(setting.help and setting.metavar for setting in settings())
