"""virtio-net: packets through a tap by name and by descriptor, and through passt."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from functional.guest import Boot, arguments, boot, script_text
from functional.rig import Rig

HOST, GUEST = "192.168.7.1", "192.168.7.2"
SIZE = 6_000_001
MAC = "02:00:5e:10:00:07"
PASST_LOOPBACK = "10.0.2.2"  # passt gives the guest the host's gateway, and connects that to the host itself


def transfers(server: str, port: int) -> dict[str, str]:
    """What the guest does with the two ends of ``serve``.

    It keeps its side of the first connection open: passt of 2023 sends a peer that has closed its own side
    the same data again and again.
    """
    return {
        "get": f"sleep 5 | timeout 100 nc {server} {port} >/tmp/f; sha256sum </tmp/f",
        "put": f"timeout 100 nc {server} {port + 1} </tmp/f; echo $?",
    }


def serve(host: Rig, port: int, size: int) -> None:
    """On the host: a random file for who connects to ``port``; what comes in at the next one is kept."""
    server = f"""
import os, socket
out, into = socket.create_server(("", {port})), socket.create_server(("", {port + 1}))
data = os.urandom({size})
open("/tmp/sent{port}", "wb").write(data)
print("listening", flush=True)
client, _ = out.accept()
client.sendall(data)
client.close()
client, _ = into.accept()
with open("/tmp/got{port}", "wb") as file:
    while part := client.recv(1 << 20):
        file.write(part)
"""
    job = host.start(["python3.11", "-c", server])
    while b"listening" not in job.sink(1):
        host.client.turn(1)


def check_transfers(host: Rig, booted: Boot, port: int) -> None:
    sums = host.run(["sha256sum", f"/tmp/sent{port}", f"/tmp/got{port}"]).stdout.decode().split()[::2]
    assert booted["get"].split()[0] == sums[0]
    assert sums[0] == sums[1]
    assert booted["put"] == "0"


def make_tap(host: Rig, name: str, address: str) -> None:
    ip = "/bin/ip"  # not the shell's own
    script = (
        f"{ip} tuntap add {name} mode tap && {ip} addr add {address} dev {name} && {ip} link set {name} up"
    )
    done = host.run(["sh", "-c", script])
    assert done.status == 0, done.stderr


@pytest.fixture(scope="module")
def tapped(host: Rig) -> Boot:
    """One boot with a tap of the host and passt."""
    make_tap(host, "tap7", f"{HOST}/24")
    serve(host, 7000, SIZE)
    serve(host, 7100, SIZE // 12)
    commands = {
        "up": f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; cat /sys/class/net/eth0/address",
        "ping": f"ping -c 3 -i 0.2 {HOST} | tail -n 2",
        "large-ping": f"ping -c 2 -i 0.2 -s 20000 {HOST} | grep -c '20008 bytes from'",
        **transfers(HOST, 7000),
        "features": "cat /sys/class/net/eth0/device/features",
        "link-down": f"ip link set eth0 down; ip link set eth0 up; ping -c 3 {HOST} | grep -c 'bytes from'",
        "dhcp": "ip link set eth0 down; ip link set eth1 up; udhcpc -i eth1 -q -n -t 5; ip route",
        **{f"user-{name}": command for name, command in transfers(PASST_LOOPBACK, 7100).items()},
        "resolv": "cat /etc/resolv.conf",
    }
    return boot(host, commands, "--net", f"tap=tap7,vhost=off,mac={MAC}", "--net", "user", timeout=280)


def test_the_guest_has_the_given_address_and_is_pinged(tapped: Boot) -> None:
    assert tapped.status == 0, tapped.stderr + tapped.console[-2000:]
    assert tapped["up"] == MAC
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in tapped["ping"]
    assert tapped["large-ping"] == "2"  # in fragments


def test_bulk_data_passes_both_ways_unchanged(tapped: Boot, host: Rig) -> None:
    check_transfers(host, tapped, 7000)


def test_checksums_and_segmentation_are_left_to_the_host(tapped: Boot, host: Rig) -> None:
    bits = {number for number, bit in enumerate(tapped["features"]) if bit == "1"}
    assert {0, 1, 7, 8, 11, 12, 15, 32} <= bits  # CSUM, GUEST_CSUM, TSO both ways, MRG_RXBUF, VERSION_1
    for way in ("rx", "tx"):
        counters = [f"/sys/class/net/tap7/statistics/{way}_{what}" for what in ("bytes", "packets")]
        moved, packets = map(int, host.run(["cat", *counters]).stdout.split())
        assert moved > SIZE
        assert moved / packets > 1514  # longer than any Ethernet frame: segments pass undivided


def test_the_link_works_again_after_it_was_down(tapped: Boot) -> None:
    assert tapped["link-down"] == "3"


def test_passt_gives_an_address_and_reaches_the_host(tapped: Boot, host: Rig) -> None:
    assert re.search(r"^default via 10\.0\.2\.2 dev eth1", tapped["dhcp"], re.MULTILINE)
    assert tapped["resolv"].startswith("nameserver ")
    sections = {"get": tapped["user-get"], "put": tapped["user-put"]}
    check_transfers(host, replace(tapped, sections=sections), 7100)


def run_on_inherited_tap(name: str, argv: list[str]) -> dict[str, Any]:
    """Runs inside: open a tap, as a management program would, and hand it to nemu."""
    import fcntl
    import os
    import struct
    import subprocess

    tap = os.open("/dev/net/tun", os.O_RDWR)
    iff_tap, iff_no_pi, iff_vnet_hdr = 0x0002, 0x1000, 0x4000
    request = struct.pack("16sH22x", name.encode(), iff_tap | iff_no_pi | iff_vnet_hdr)
    fcntl.ioctl(tap, 0x400454CA, request)  # TUNSETIFF
    os.set_inheritable(tap, True)
    command = ["python3.11", "-m", "nemu", *argv, "--net", f"fd={tap}"]
    environment = {**os.environ, "PYTHONPATH": "/nemu/src"}
    done = subprocess.run(
        command, pass_fds=[tap], stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    return {"status": done.returncode, "out": done.stdout.decode(), "err": done.stderr.decode()}


def test_a_tap_is_taken_over_as_an_open_descriptor(host: Rig) -> None:
    make_tap(host, "tap8", "192.168.8.1/24")
    script = (
        "ip addr add 192.168.8.2/24 dev eth0; ip link set eth0 up; ping -c 2 -i 0.2 192.168.8.1 | tail -n 2"
    )
    done = host.call_here(run_on_inherited_tap, name="tap8", argv=arguments(host, script_text(script)))
    assert done["status"] == 0, done["err"]
    assert "2 packets received" in done["out"]


def test_a_busy_tap_is_refused_in_one_line_and_nothing_is_left(host: Rig) -> None:
    make_tap(host, "tap9", "192.168.9.1/24")
    opener = (
        "import fcntl, os, struct, time; tap = os.open('/dev/net/tun', os.O_RDWR);"
        "fcntl.ioctl(tap, 0x400454CA, struct.pack('16sH22x', b'tap9', 0x5002));"
        "print('held', flush=True); time.sleep(1000)"
    )
    holder = host.start(["python3.11", "-c", opener])
    while b"held" not in holder.sink(1):
        host.client.turn(1)
    sockets = ["--console", "socket=/tmp/busy.sock", "--net", "user", "--net", "tap=tap9"]
    done = host.run_nemu(["run", "--kernel", "/run/guest/kernel", *sockets])
    holder.signal(9)
    assert done.status == 2
    assert done.stderr == b"nemu: --net tap=tap9: is in use by another program\n"
    assert host.run(["pgrep", "passt"]).stdout == b""
    assert host.run(["test", "-e", "/tmp/busy.sock"]).status == 1
