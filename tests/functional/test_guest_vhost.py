"""The host kernel's data planes: packets and sockets that move while nobody of ours is awake."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from functional.guest import arguments, compiled, script_text
from functional.inside import ENVIRONMENT, PATIENCE, PYTHON, Nemu
from functional.rig import KERNEL, Rig

pytestmark = pytest.mark.timeout(900)  # two machines one after the other, on a host that may be busy

HOST, GUEST = "192.168.17.1", "192.168.17.2"
TAP, CID = "vhost0", 42
SINK, SOURCE, DONE, FORWARDED = 5000, 5001, 5002, 18080
SIZE = 12_000_001
# what the guest does with the connections to its ports
GUEST_ENDS = ((SINK, "/dev/null >/tmp/f"), (SOURCE, "/tmp/f"), (DONE, "/dev/null"))
ECHO, BACK = 1000, 2000  # AF_VSOCK ports of the guest and of the host
EXITS = "/sys/kernel/tracing/events/kvm/kvm_userspace_exit"
# Each line of input is a command.
SCRIPT = f"""
modprobe vmw_vsock_virtio_transport
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
ip addr add {GUEST}/24 dev eth0
ip link set eth0 up
stty -echo
echo ready
while read -r line; do eval "$line"; echo "end $?"; done
"""


def payload() -> bytes:
    return random.Random(7).randbytes(SIZE)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def connect(family: int, address: Any) -> socket.socket:
    """Connected to a program of the guest, as soon as it listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        client = socket.socket(family)
        client.settimeout(PATIENCE)
        try:
            client.connect(address)
            return client
        except OSError:
            client.close()
            assert time.monotonic() < deadline, address
            time.sleep(0.1)


def take(client: socket.socket) -> bytes:
    """What comes, to its end."""
    received = bytearray()
    while part := client.recv(1 << 20):
        received += part
    return bytes(received)


def give(client: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and its end; what comes back."""

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    with client:
        back = take(client)
        sender.join()
    return back


def by_passt() -> str:
    """What the guest answers; passt takes a connection before it knows whether the guest does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return give(connect(socket.AF_INET, ("127.0.0.1", FORWARDED)), b"by passt").decode()
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def echo_server() -> None:
    """On the host, for the guest's AF_VSOCK: whatever comes goes back."""
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, BACK))
    listener.listen(4)

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            while data := client.recv(1 << 16):
                client.sendall(data)
            client.close()

    threading.Thread(target=serve, daemon=True).start()


class Measure:
    """What happens between two looks: exits to user space of any VM, and turns of nemu's threads."""

    def __init__(self, pid: int) -> None:
        self._tasks = f"/proc/{pid}/task"
        with open(f"{EXITS}/trigger", "w", encoding="ascii") as file:
            file.write("hist:keys=reason")
        self._before = self._look()

    def _look(self) -> dict[str, int]:
        with open(f"{EXITS}/hist", encoding="ascii") as file:
            exits = sum(int(count) for count in re.findall(r"hitcount:\s*(\d+)", file.read()))
        found = {"exits": exits}
        for task in os.listdir(self._tasks):
            with open(f"{self._tasks}/{task}/status", encoding="ascii") as file:
                text = file.read()
            name = re.findall(r"Name:\t(.*)", text)[0]
            found[f"{name} {task}"] = sum(map(int, re.findall(r"ctxt_switches:\t(\d+)", text)))
        return found

    def changes(self, pid: int) -> dict[str, int]:
        """Exits, and how often the thread of the loop was scheduled."""
        after = self._look()
        with open(f"{EXITS}/trigger", "w", encoding="ascii") as file:
            file.write("!hist:keys=reason")
        loop = next(name for name in after if name.endswith(f" {pid}"))
        return {
            "exits": after["exits"] - self._before["exits"],
            "loop": after[loop] - self._before[loop],
        }


def workers(pid: int) -> dict[str, int]:
    """The kernel's vhost threads for ``pid`` and how often each had its turn."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/comm", encoding="ascii") as file:
                name = file.read().strip()
            with open(f"/proc/{entry}/status", encoding="ascii") as file:
                turns = sum(map(int, re.findall(r"ctxt_switches:\t(\d+)", file.read())))
        except OSError:
            continue
        if name == f"vhost-{pid}":
            found[entry] = turns
    return found


def ended(client: socket.socket) -> bool:
    """Whether the next word on a connection to a guest that is gone ends it."""
    try:
        client.sendall(b"anybody?")
        return client.recv(100) == b""
    except ConnectionError:
        return True
    finally:
        client.close()


def talk(argv: list[str]) -> dict[str, Any]:
    """Runs inside: all that a guest and its host have to say to each other, twice, over a reboot."""
    echo_server()
    with Nemu(argv) as nemu:

        def guest(command: str) -> str:
            nemu.type(f"{command}\n")
            return nemu.expect(r"end \d+").strip()

        nemu.expect("ready")
        seen: dict[str, Any] = {"rounds": [use(nemu, guest)]}
        nemu.type(f"/vsock echo {ECHO} 1 &\n")
        nemu.expect(r"end \d+")
        old = connect(socket.AF_VSOCK, (CID, ECHO))
        fds, threads = nemu.resources()["fds"], len(workers(nemu.pid))
        nemu.type("reboot -f\n")
        nemu.expect("ready")
        seen["old"] = ended(old)
        seen["rounds"].append(use(nemu, guest))
        seen["kept"] = [nemu.resources()["fds"] == fds, len(workers(nemu.pid)) == threads]
        subprocess.run(["/bin/ip", "link", "delete", TAP], check=True)
        seen["carrier"] = guest(
            "for n in 1 2 3 4 5; do read -r c </sys/class/net/eth0/carrier; "
            "[ $c = 0 ] && break; sleep 1; done; echo $c"
        )
        seen["log"] = guest("dmesg | grep -iE 'vsock|virtio' | grep -iE 'error|warn|fail|BUG'")
        nemu.type("poweroff -f\n")
        seen["status"], seen["errors"] = nemu.wait(), nemu.stderr()
    return seen


def use(nemu: Nemu, guest: Callable[[str], str]) -> dict[str, Any]:
    """Bulk data and pings through the tap, AF_VSOCK both ways, and a port that passt forwards."""
    seen: dict[str, Any] = {}
    data = payload()
    # The last one waits until the measurement is over: the shell's next word is a notification of ours.
    nemu.type("; ".join(f"nc -l -p {port} <{file}" for port, file in GUEST_ENDS) + "\n")
    sink = connect(socket.AF_INET, (GUEST, SINK))
    time.sleep(1)  # so that the guest is done with the console and with starting programs
    measure = Measure(nemu.pid)
    give(sink, data)
    with connect(socket.AF_INET, (GUEST, SOURCE)) as source:
        seen["back"] = digest(take(source))
    seen["cost"] = measure.changes(nemu.pid)
    connect(socket.AF_INET, (GUEST, DONE)).close()
    nemu.expect(r"end \d+")
    seen["sum"] = guest("sha256sum </tmp/f")
    seen["large"] = guest(f"ping -c 2 -i 0.2 -s 20000 {HOST} | grep -c '20008 bytes from'")
    before = workers(nemu.pid)
    seen["each-cpu"] = guest(
        f"for c in 1 2; do taskset $c ping -c 3 -i 0.2 {HOST} | grep -c 'bytes from'; done"
    )
    after = workers(nemu.pid)
    seen["workers"] = [after[worker] - before[worker] for worker in before]
    seen["queues"] = guest("ls /sys/class/net/eth0/queues")
    nemu.type(f"/vsock echo {ECHO} 1\n")
    seen["vsock-in"] = digest(give(connect(socket.AF_VSOCK, (CID, ECHO)), data[: SIZE // 4]))
    nemu.expect(r"end \d+")
    seen["vsock-out"] = guest(f"/vsock copy {BACK} </tmp/f | sha256sum")
    seen["dhcp"] = guest("ip link set eth1 up; udhcpc -i eth1 -q -n -t 5 >/dev/null")
    nemu.type("nc -l -p 80 -e cat\n")
    seen["forwarded"] = by_passt()
    nemu.expect(r"end \d+")
    return seen


def make_tap(host: Rig, name: str, address: str) -> None:
    """A tap of several queues."""
    ip = "/bin/ip"  # not the shell's own
    commands = (
        f"tuntap add {name} mode tap multi_queue",
        f"addr add {address} dev {name}",
        f"link set {name} up",
    )
    done = host.run(["sh", "-c", " && ".join(f"{ip} {command}" for command in commands)])
    assert done.status == 0, done.stderr


@pytest.fixture(scope="module")
def seen(host: Rig) -> dict[str, Any]:
    make_tap(host, TAP, f"{HOST}/24")
    devices = ["--net", f"tap={TAP},queues=2", "--net", f"user,forward=tcp:{FORWARDED}:80"]
    argv = arguments(
        host,
        script_text(SCRIPT),
        *devices,
        # A young Linux asks the entropy device every few seconds, which would wake the loop.
        *("--vsock", f"cid={CID}", "--cpus", "2", "--rng", "off"),
        programs={"vsock": compiled("vsock.c")},
    )
    result: dict[str, Any] = host.call_here(talk, argv=argv, timeout=800)
    return result


@pytest.fixture(params=["first machine", "after a reboot"])
def after(seen: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one of the two machines saw."""
    result: dict[str, Any] = seen["rounds"][request.param == "after a reboot"]
    return result


def test_bulk_data_passes_both_ways_unchanged(after: dict[str, Any]) -> None:
    assert after["sum"].split()[0] == after["back"] == digest(payload())
    assert after["large"].split()[0] == "2"  # in fragments


def test_a_transfer_causes_no_exit_and_does_not_wake_the_loop(after: dict[str, Any]) -> None:
    assert after["cost"]["exits"] == 0
    assert after["cost"]["loop"] == 0


def test_each_cpu_has_its_queue_and_each_queue_its_thread_of_the_kernel(after: dict[str, Any]) -> None:
    assert after["queues"].split()[:4] == ["rx-0", "rx-1", "tx-0", "tx-1"]
    assert after["each-cpu"].split()[:2] == ["3", "3"]
    assert len(after["workers"]) == 3, "two of vhost-net, one of vhost-vsock"
    assert sum(turns >= 3 for turns in after["workers"]) == 2


def test_sockets_connect_guest_and_host_both_ways(after: dict[str, Any]) -> None:
    assert after["vsock-in"] == digest(payload()[: SIZE // 4])
    assert after["vsock-out"].split()[0] == digest(payload())


def test_a_socket_of_before_the_reboot_ends_at_its_next_word(seen: dict[str, Any]) -> None:
    assert seen["old"]


def test_a_port_of_the_host_leads_to_the_guests(after: dict[str, Any]) -> None:
    assert after["forwarded"] == "by passt"


def test_a_reboot_keeps_every_descriptor_and_thread(seen: dict[str, Any]) -> None:
    assert seen["kept"] == [True, True]


def test_a_deleted_tap_takes_the_link_down_and_the_guest_runs_on(seen: dict[str, Any]) -> None:
    assert seen["carrier"].split()[0] == "0"
    assert seen["log"] == "end 1", "grep has found nothing"
    assert seen["status"] == 0
    assert seen["errors"] == f"nemu: virtio-net0: {TAP}: File descriptor in bad state; its link is down\n"


def run_on_descriptors(names: list[str], argv: list[str]) -> dict[str, Any]:
    """Runs inside: open queues of taps and vhost descriptors for them, as Kata does, and hand them over."""
    taps = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(2)]
    flags = 0x0002 | 0x1000 | 0x4000 | 0x0100  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE
    for tap, name in zip(taps, names, strict=True):
        fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))  # TUNSETIFF
    planes = [os.open("/dev/vhost-net", os.O_RDWR) for _ in range(2)]
    vsock = os.open("/dev/vhost-vsock", os.O_RDWR)
    fcntl.ioctl(vsock, 0x4008AF60, struct.pack("Q", CID))  # VHOST_VSOCK_SET_GUEST_CID, which reserves it
    net = f"fds={taps[0]}:{taps[1]},vhostfds={planes[0]}:{planes[1]}"
    command = [PYTHON, "-m", "nemu", *argv, "--net", net, "--vsock", f"cid={CID},vhostfd={vsock}"]
    fds = [*taps, *planes, vsock]
    done = subprocess.run(
        command, pass_fds=fds, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, check=False
    )
    return {"status": done.returncode, "out": done.stdout.decode(), "err": done.stderr.decode()}


def test_descriptors_of_taps_and_of_vhost_are_taken_over(host: Rig) -> None:
    make_tap(host, "vhost1", "192.168.18.1/24")
    script = """
        ip addr add 192.168.18.2/24 dev eth0; ip link set eth0 up; ls /sys/class/net/eth0/queues
        for c in 1 2; do taskset $c ping -c 2 -i 0.2 192.168.18.1 | grep 'packets received'; done
    """
    argv = arguments(host, script_text(script), "--cpus", "2")
    done = host.call_here(run_on_descriptors, names=["vhost1"] * 2, argv=argv)
    assert done["status"] == 0, done["err"]
    assert "tx-1" in done["out"]
    assert done["out"].count("2 packets received") == 2


def refused(host: Rig, *options: str) -> tuple[int, str]:
    """Status and errors of a nemu that cannot start."""
    done = host.run_nemu(["run", "--kernel", KERNEL, *options])
    return done.status, done.stderr.decode()


def test_an_address_of_another_guest_is_refused_in_one_line(host: Rig) -> None:
    holder = (
        "import fcntl, os, struct, time; fd = os.open('/dev/vhost-vsock', os.O_RDWR);"
        "fcntl.ioctl(fd, 0x4008AF60, struct.pack('Q', 77)); print('held', flush=True); time.sleep(1000)"
    )
    job = host.start(["python3.11", "-c", holder])
    while b"held" not in job.sink(1):
        host.client.turn(1)
    found = refused(host, "--net", "user", "--vsock", "cid=77")
    job.signal(9)
    assert found == (2, "nemu: --vsock cid=77: another guest of this host has it\n")
    assert host.run(["pgrep", "passt"]).stdout == b""


def test_where_vhost_is_missing_it_is_demanded_in_one_line(host: Rig) -> None:
    make_tap(host, "vhost2", "192.168.19.1/24")
    host.run(["sh", "-c", "mv /dev/vhost-net /dev/hidden-net; mv /dev/vhost-vsock /dev/hidden-vsock"])
    missing = "No such file or directory; try: modprobe"
    for option, value, problem in (
        ("--net", "tap=vhost2,vhost=on", f"needs vhost-net: /dev/vhost-net: {missing} vhost_net"),
        ("--net", "tap=vhost2,queues=2", f"needs vhost-net: /dev/vhost-net: {missing} vhost_net"),
        ("--vsock", "cid=78", f"/dev/vhost-vsock: {missing} vhost_vsock"),
    ):
        shown = value.replace(",queues=2", "")
        assert refused(host, option, value) == (1, f"nemu: {option} {shown}: {problem}\n")
    host.run(["sh", "-c", "mv /dev/hidden-net /dev/vhost-net; mv /dev/hidden-vsock /dev/vhost-vsock"])


def test_descriptors_of_something_else_are_refused_in_one_line(host: Rig) -> None:
    make_tap(host, "vhost3", "192.168.20.1/24")
    status, errors = refused(host, "--net", "tap=vhost3,vhostfds=0:1")
    assert (status, errors.count("\n")) == (2, 1)
    assert "vhostfds has 2, must have 1" in errors
    status, errors = refused(host, "--net", "tap=vhost3,vhostfds=0")
    assert (status, errors.count("\n")) == (1, 1)
    assert "--net tap=vhost3: needs vhost-net: VHOST_SET_OWNER: " in errors
    make_tap(host, "vhost4", "192.168.21.1/24")
    argv = ["run", "--host", "native", "--kernel", KERNEL]
    done = host.call_here(run_on_descriptors, names=["vhost3", "vhost4"], argv=argv)
    assert done["status"] == 2
    assert re.fullmatch(r"nemu: --net fds=\d+:\d+: must be queues of one tap\n", done["err"])
