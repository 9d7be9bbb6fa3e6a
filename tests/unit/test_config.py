"""Settings: how they are written, what is refused, and that one description serves all."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu import syntax
from nemu.arch.x86_64 import layout
from nemu.config import MIB, Given, MachineConfig, RunOptions, assemble, settings
from nemu.config import machine as machine_config
from nemu.config.chardev import ChardevConfig
from nemu.config.disk import DiskConfig
from nemu.config.net import Forward, NetConfig
from nemu.config.vhost_user import VhostUserConfig
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
        ("a.qcow2", DiskConfig("a.qcow2", format="qcow2")),
        ("a.qcow2,format=raw", DiskConfig("a.qcow2", format="raw")),
        ("a.img,format=qcow2", DiskConfig("a.img", format="qcow2")),
        ("a.img,iops=100,bps=10M", DiskConfig("a.img", iops=100, bps=10 << 20)),
        ("vhost-user=/run/a,,b", DiskConfig("", socket="/run/a,b")),
        ("vhost-user=s,queues=2", DiskConfig("", socket="s", queues=2)),
        ("./vhost-user=s", DiskConfig("./vhost-user=s")),
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
        ("a,path=b", "path is given twice"),
        ("a,format=vmdk", "format must be raw or qcow2"),
        ("a,iops=0", "iops must be a whole number from 1"),
        ("a.qcow2,serial=x", "serial needs a raw image without limits"),
        ("a,bps=1M,serial=x", "serial needs a raw image without limits"),
        ("vhost-user=", "vhost-user must be a path"),
        ("vhost-user=s,readonly=on", "unknown key readonly; known are queues, vhost-user"),
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
        ("fd=7", NetConfig("fd", fds=(7,))),
        ("user,mac=52:54:00:AB:00:01", NetConfig("user", mac="52:54:00:ab:00:01")),
        ("tap=t,queues=2,vhost=on", NetConfig("tap", tap="t", queues=2, vhost="on")),
        ("tap=t,vhostfds=5", NetConfig("tap", tap="t", vhostfds=(5,))),
        ("fds=5:6,vhostfds=7:8", NetConfig("fd", fds=(5, 6), vhostfds=(7, 8))),
        ("fd=5,vhost=off", NetConfig("fd", fds=(5,), vhost="off")),
        ({"fds": [5, 6], "vhost": True}, NetConfig("fd", fds=(5, 6), vhost="on")),
        ("user,forward=tcp:8080:80", NetConfig("user", forward=(Forward("tcp", "", 8080, 80),))),
        (
            "user,forward=tcp:127.0.0.1:80:8080,forward=udp:[0::1]:80:53,forward=tcp:[::1]:80:80",
            NetConfig(
                "user",
                forward=(
                    Forward("tcp", "127.0.0.1", 80, 8080),
                    Forward("udp", "::1", 80, 53),
                    Forward("tcp", "::1", 80, 80),
                ),
            ),
        ),
        ({"user": True, "forward": "tcp:1:2"}, NetConfig("user", forward=(Forward("tcp", "", 1, 2),))),
        (
            "vhost-user=/run/s,mac=52:54:00:ab:00:01",
            NetConfig("vhost-user", socket="/run/s", mac="52:54:00:ab:00:01"),
        ),
        ({"tap": "tap0"}, NetConfig("tap", tap="tap0")),
        ({"vhost-user": "s"}, NetConfig("vhost-user", socket="s")),
        ({"user": True}, NetConfig("user")),
    ],
)
def test_a_network_card_names_its_backend(value: object, net: NetConfig) -> None:
    assert machine(net=[value]).nets == (net,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"),
        ("bridge=br0", "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"),
        ("tap=", "interface name"),
        ("tap=0123456789abcdef", "interface name of 1 to 15 bytes"),
        ("tap=../x", "interface name"),
        ("tap=a b", "interface name"),
        ("fd=-1", "fd must be a whole number"),
        ("fd=x", "fd must be a whole number"),
        ("user,tap=t0", "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"),
        ("user,mac=01:00:5e:00:00:01", "unicast"),
        ("user,mac=00:00:00:00:00:00", "unicast"),
        ("user,mac=52:54:00:12:34", "six hexadecimal bytes"),
        ({"mac": "52:54:00:12:34:56"}, "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"),
        ({"user": False}, "user can only be on"),
        ("tap=t,queues=0", "queues must be a whole number from 1 to 63"),
        ("tap=t,queues=64", "from 1 to 63"),
        ("tap=t,vhost=yes", "vhost must be on, off or auto"),
        ("tap=t,queues=2,vhost=off", "one queue pair and without vhostfds"),
        ("tap=t,vhost=off,vhostfds=3", "one queue pair and without vhostfds"),
        ("fds=5:6,vhostfds=7", "vhostfds has 1, must have 2"),
        ("tap=t,vhostfds=7:8", "vhostfds has 2, must have 1"),
        ("fds=5:5", "the same descriptor twice"),
        ("fds=5:", "must be a whole number"),
        ("fds=", "must be a whole number"),
        ("fds=" + ":".join(map(str, range(64))), "1 to 63 descriptors"),
        ({"fds": "5"} | {"fd": 6}, "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"),
        ({"fds": {}}, "1 to 63 descriptors"),
        ("fds=5:6,queues=2", "queues does not go with fds=5:6"),
        ("user,queues=2", "queues does not go with user"),
        ("user,vhost=on", "vhost does not go with user"),
        ("user,vhostfds=3", "vhostfds does not go with user"),
        ("tap=t,forward=tcp:1:2", "forward does not go with tap=t"),
        ("user,forward=", "must be tcp or udp with two ports"),
        ("user,forward=tcp:80", "must be tcp or udp with two ports"),
        ("user,forward=icmp:1:2", "must be tcp or udp with two ports"),
        ("user,forward=tcp:0:80", "forward tcp:0:80 must be a whole number from 1 to 65535"),
        ("user,forward=tcp:80:65536", "from 1 to 65535"),
        ("user,forward=tcp:80:x", "from 1 to 65535"),
        ("user,forward=tcp:1.2.3:80:80", "has 1.2.3, which is no IP address"),
        ("user,forward=tcp:::1:80:80", "which is no IP address (IPv6 in brackets)"),
        ("user,forward=tcp:[1.2.3.4]:80:80", "which is no IP address"),
        ("user,forward=tcp:80:1,forward=tcp:80:2", "tcp:80:1 and tcp:80:2 want the same port"),
        ("user,forward=tcp:80:1,forward=tcp:1.2.3.4:80:2", "want the same port"),
    ],
)
def test_a_wrong_network_card_is_refused(value: object, problem: str) -> None:
    assert problem in refusal(net=[value])


@pytest.mark.parametrize(
    ("value", "device"),
    [
        ("type=18,socket=/run/s", VhostUserConfig(18, "/run/s")),
        ("socket=s,type=63,queues=3,queue-size=1024", VhostUserConfig(63, "s", 3, 1024)),
        ({"type": 2, "socket": "s", "queue-size": 2}, VhostUserConfig(2, "s", queue_size=2)),
    ],
)
def test_any_device_may_be_at_a_vhost_user_socket(value: object, device: VhostUserConfig) -> None:
    assert machine(**{"vhost-user": [value]}).vhost_users == (device,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("type=2", "needs type=N and socket=SOCKET"),
        ("socket=s", "needs type=N and socket=SOCKET"),
        ("type=64,socket=s", "type must be a whole number from 1 to 63"),
        ("type=2,socket=s,queues=128", "queues must be a whole number from 1 to 127"),
        ("type=2,socket=s,queue-size=48", "queue-size must be a power of two of at most 1024"),
        ("type=2,socket=s,queue-size=2048", "queue-size must be a whole number from 2 to 1024"),
        ("s", "'s' must be KEY=VALUE"),
    ],
)
def test_a_wrong_vhost_user_device_is_refused(value: object, problem: str) -> None:
    assert problem in refusal(**{"vhost-user": [value]})


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
numbers = st.lists(st.integers(0, 99), max_size=3).map(tuple)
forwards = st.builds(
    Forward, st.sampled_from(["tcp", "udp"]), st.just("::1"), st.integers(1, 9), st.integers(1, 9)
)
network_cards = st.builds(
    NetConfig,
    backend=st.just("tap"),
    tap=names,
    fds=numbers,
    vhostfds=numbers,
    forward=st.lists(forwards, max_size=2).map(tuple),
)
machines = st.builds(
    MachineConfig,
    kernel=names,
    append=names,
    memory=st.integers(64, 1 << 20).map(lambda mib: mib * MIB),
    cpus=st.integers(1, 255),
    disks=st.lists(st.builds(DiskConfig, path=names, readonly=st.booleans()), max_size=3).map(tuple),
    nets=st.lists(network_cards, max_size=3).map(tuple),
    rng=st.booleans(),
    vsock=st.none() | st.builds(VsockConfig, cid=st.integers(3, 9), socket=names),
    console=st.builds(ChardevConfig, kind=st.just("file"), path=names),
)


@hypothesis.settings(deadline=None)  # the first machine imports what it needs
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
