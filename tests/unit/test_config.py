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
from nemu.config import cpus as cpus_config
from nemu.config.balloon import BalloonConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.cpus import Cpus, Memory
from nemu.config.disk import DiskConfig, scsi_addresses
from nemu.config.fs import FsConfig
from nemu.config.net import Forward, NetConfig
from nemu.config.pmem import PmemConfig
from nemu.config.port import PortConfig
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
    assert machine(memory=text).memory == Memory(size, size)


def test_a_file_may_give_memory_as_a_number_of_mib() -> None:
    assert machine(memory=256).memory == Memory(256 * MIB, 256 * MIB)


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
    assert cpus_config.MAX_CPUS == layout.MAX_CPUS
    assert cpus_config.MIN_MEMORY == layout.MIN_MEMORY
    assert layout.ram_regions(cpus_config.MAX_MEMORY)[-1][1] > 0


@pytest.mark.parametrize("cpus", ["0", "256", "-1", "1.0", "", "two", "9" * 5000, True])
def test_cpus_outside_1_to_255_are_refused(cpus: object) -> None:
    assert refusal(cpus=cpus).endswith("must be a whole number from 1 to 255")


@pytest.mark.parametrize("cpus", [1, 255])
def test_cpus_at_the_limits_are_taken(cpus: int) -> None:
    assert machine(cpus=str(cpus)).cpus == Cpus(cpus, cpus)


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
        ("a.img,cache=writethrough", DiskConfig("a.img", cache="writethrough")),
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
        ("a.qcow2,serial=x", "serial needs a raw image and nothing else"),
        ("a,bps=1M,serial=x", "serial needs a raw image and nothing else"),
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
    ("value", "pmem"),
    [
        ("a.img", PmemConfig("a.img")),
        ("a,,b.img,readonly=on", PmemConfig("a,b.img", readonly=True)),
        ({"path": "a.img", "readonly": True}, PmemConfig("a.img", readonly=True)),
    ],
)
def test_persistent_memory_is_a_path_with_properties(value: object, pmem: PmemConfig) -> None:
    assert machine(pmem=[value]).pmems == (pmem,)


@pytest.mark.parametrize("value", ["", "a,readonly=maybe", "a,share=on", {"readonly": True}, 5])
def test_a_wrong_persistent_memory_is_refused(value: object) -> None:
    assert refusal(pmem=[value]).startswith("--pmem ")


@pytest.mark.parametrize(
    ("value", "balloon"),
    [
        ("off", None),
        (False, None),
        ("on", BalloonConfig()),
        (True, BalloonConfig()),
        ("256M", BalloonConfig(size=256 * MIB)),
        (256, BalloonConfig(size=256 * MIB)),
        ("on,reporting=off,statistics=2.5", BalloonConfig(reporting=False, statistics=2.5)),
        ("1G,deflate_on_oom=off", BalloonConfig(size=1 << 30, deflate_on_oom=False)),
        ({"size": "64M", "reporting": False}, BalloonConfig(size=64 * MIB, reporting=False)),
    ],
)
def test_a_balloon_may_have_a_size_and_properties(value: object, balloon: BalloonConfig | None) -> None:
    assert machine(balloon=value).balloon == balloon


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be on, off or a size"),
        ("yes", "must be on, off or a size"),
        ("1K", "multiple of 4K"),
        ("on,reporting=1", "reporting must be on or off"),
        ("on,size=1G,size=2G", "size is given twice"),
        ("on,statistics=-1", "number of seconds"),
        ("on,stats=1", "unknown key stats"),
        (1.5, "must be text or a table"),
    ],
)
def test_a_wrong_balloon_is_refused(value: object, problem: str) -> None:
    assert problem in refusal(balloon=value)


@pytest.mark.parametrize("action", ["off", "reset", "poweroff", "panic", "pause", "none"])
def test_a_watchdog_has_an_action(action: str) -> None:
    assert machine(watchdog=action).watchdog == action


def test_a_watchdog_without_an_action_is_refused() -> None:
    assert "must be off, reset, poweroff, panic, pause or none" in refusal(watchdog="on")


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


@pytest.mark.parametrize(
    ("words", "disk"),
    [
        ("bus=scsi", DiskConfig("d", bus="scsi")),
        ("bus=virtio", DiskConfig("d")),
        (
            "bus=scsi,scsi-id=255,lun=16383,serial=s",
            DiskConfig("d", serial="s", bus="scsi", scsi_id=255, lun=16383),
        ),
    ],
)
def test_a_disk_may_be_on_the_scsi_bus(words: str, disk: DiskConfig) -> None:
    assert machine(disk=[f"d,{words}"]).disks == (disk,)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("bus=ide", "bus must be virtio or scsi"),
        ("scsi-id=1", "scsi-id and lun need bus=scsi"),
        ("lun=0,bus=virtio", "scsi-id and lun need bus=scsi"),
        ("bus=scsi,scsi-id=256", "scsi-id must be a whole number from 0 to 255"),
        ("bus=scsi,lun=16384", "lun must be a whole number from 0 to 16383"),
        ("bus=scsi,queues=2", "queues is for virtio disks"),
        ("bus=scsi,iops=5", "needs a raw image without limits"),
        ("bus=scsi,format=qcow2", "needs a raw image without limits"),
    ],
)
def test_a_wrong_place_on_the_scsi_bus_is_refused(words: str, problem: str) -> None:
    assert problem in refusal(disk=[f"d,{words}"])


def test_disks_find_free_places_on_the_scsi_bus() -> None:
    def places(*given: tuple[int, int]) -> list[tuple[int, int]]:
        return scsi_addresses([DiskConfig("d", bus="scsi", scsi_id=id_, lun=lun) for id_, lun in given])

    assert places((-1, -1), (-1, -1)) == [(0, 0), (1, 0)]
    assert places((-1, -1), (0, 0), (-1, 5), (-1, -1)) == [(1, 0), (0, 0), (0, 5), (2, 0)]
    assert places((3, -1), (3, -1), (3, 0)) == [(3, 1), (3, 2), (3, 0)]
    assert scsi_addresses([DiskConfig("d"), DiskConfig("e", bus="scsi")]) == [(0, 0)]
    with pytest.raises(ConfigError, match="no free place"):
        places(*[(-1, -1)] * 257)


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
    memory=st.builds(Memory, st.integers(64, 1 << 20).map(lambda mib: mib * MIB)),
    cpus=st.builds(Cpus, st.integers(1, 255), st.integers(1, 255)),
    hotplug=st.sampled_from([("auto",), (), ("cpu",), ("cpu", "pci")]),
    disks=st.lists(st.builds(DiskConfig, path=names, readonly=st.booleans()), max_size=3).map(tuple),
    nets=st.lists(network_cards, max_size=3).map(tuple),
    pmems=st.lists(st.builds(PmemConfig, path=names), max_size=2).map(tuple),
    rng=st.booleans(),
    command=st.lists(names, max_size=3).map(tuple),
    env=st.lists(names, max_size=3).map(tuple),
    rw=st.booleans(),
    ports=st.lists(st.builds(PortConfig, name=names, kind=st.just("file"), path=names), max_size=3).map(
        tuple
    ),
    filesystems=st.lists(st.builds(FsConfig, tag=names, dir=names), max_size=3).map(tuple),
    balloon=st.none()
    | st.builds(
        BalloonConfig,
        size=st.integers(0, 1 << 20).map(lambda mib: mib * MIB),
        statistics=st.floats(0, 3600),
    ),
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
