"""virtio-vsock on a Unix socket: Linux's AF_VSOCK in the guest, programs on the host, both ways."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import threading
import time
from typing import Any

import pytest

from functional.guest import arguments, compiled, script_text
from functional.inside import PATIENCE, Nemu
from functional.rig import Rig

PATH = "/tmp/vsock"
ECHO, BULK, SMALL, NOBODY = 1000, 2000, 2001, 2002
SIZE = 2_000_001
CONNECTIONS = 40
# Each line of input is a command.
SCRIPT = f"""
modprobe vmw_vsock_virtio_transport
stty -echo
/vsock echo {ECHO} 9999 &
echo ready
while read -r line; do eval "$line"; echo "end $?"; done
"""


def echo_server(port: int) -> None:
    """On the host, for the guest's programs: whatever comes goes back."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{PATH}_{port}")
    listener.listen(16)

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            while data := client.recv(1 << 16):
                client.sendall(data)
            client.close()

    threading.Thread(target=serve, daemon=True).start()


def dial(port: int) -> socket.socket:
    """Connected to a program of the guest, as soon as it listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(PATH)
        client.sendall(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n") and (byte := client.recv(1)):
            answer += byte
        if answer:
            assert re.fullmatch(rb"OK \d+\n", answer)
            return client
        assert time.monotonic() < deadline
        client.close()
        time.sleep(0.1)


def echoed(client: socket.socket, data: bytes) -> bytes:
    """What comes back for ``data`` and its end."""

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    back = bytearray()
    while part := client.recv(1 << 16):
        back += part
    sender.join()
    client.close()
    return bytes(back)


def refused(port: int) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(PATH)
        client.sendall(b"CONNECT %d\n" % port)
        return client.recv(100) == b""


def talk(argv: list[str]) -> dict[str, Any]:
    """Runs inside: both directions, a reboot, and both directions again."""
    for port in (BULK, SMALL):
        echo_server(port)
    seen: dict[str, Any] = {}
    with Nemu(argv) as nemu:

        def guest(command: str) -> str:
            nemu.type(f"{command}\n")
            return nemu.expect(r"end \d+").strip()

        nemu.expect("ready")
        data = random.Random(5).randbytes(SIZE)
        seen["host-to-guest"] = hashlib.sha256(echoed(dial(ECHO), data)).hexdigest()
        seen["small"] = sum(echoed(dial(ECHO), b"%d" % n) == b"%d" % n for n in range(CONNECTIONS))
        seen["refused"] = refused(NOBODY)
        seen["guest-to-host"] = guest(
            f"head -c {SIZE} /dev/urandom >/tmp/f; /vsock copy {BULK} </tmp/f >/tmp/g; cmp /tmp/f /tmp/g"
        )
        seen["sizes"] = guest("stat -c %s /tmp/g")
        seen["many"] = guest(f"/vsock many {SMALL} {CONNECTIONS}")
        seen["nobody"] = guest(f"/vsock copy {NOBODY} </dev/null")
        seen["log"] = guest("dmesg | grep -iE 'vsock|virtio' | grep -iE 'error|warn|fail|BUG'")
        open_one, silent = dial(ECHO), socket.socket(socket.AF_UNIX)
        silent.connect(PATH)
        open_one.sendall(b"still there")
        assert open_one.recv(100) == b"still there"
        before = len(nemu.resources()["fds"])
        nemu.type("reboot -f\n")
        nemu.expect("ready")
        seen["reset"] = [open_one.recv(100), silent.recv(100)]
        seen["again"] = echoed(dial(ECHO), b"again").decode()
        seen["again-many"] = guest(f"/vsock many {SMALL} 3")
        seen["left"] = before - len(nemu.resources()["fds"])
        nemu.type("poweroff -f\n")
        seen["status"], seen["errors"] = nemu.wait(), nemu.stderr()
    seen["reset"] = [part.decode() for part in seen["reset"]]
    seen["files"] = sorted(name for name in os.listdir("/tmp") if name.startswith("vsock"))
    return seen


@pytest.fixture(scope="module")
def seen(host: Rig) -> dict[str, Any]:
    argv = arguments(
        host,
        script_text(SCRIPT),
        *("--vsock", f"cid=42,socket={PATH}", "--cpus", "2"),
        programs={"vsock": compiled("vsock.c")},
    )
    result: dict[str, Any] = host.call_here(talk, argv=argv, timeout=250)
    return result


def test_bulk_data_of_a_client_reaches_the_guest_and_comes_back(seen: dict[str, Any]) -> None:
    assert seen["host-to-guest"] == hashlib.sha256(random.Random(5).randbytes(SIZE)).hexdigest()


def test_bulk_data_of_the_guest_reaches_the_host_and_comes_back(seen: dict[str, Any]) -> None:
    assert seen["guest-to-host"] == "end 0"
    assert seen["sizes"].split() == [str(SIZE), "end", "0"]


def test_many_small_connections_work_both_ways(seen: dict[str, Any]) -> None:
    assert seen["small"] == CONNECTIONS
    assert seen["many"].splitlines() == [f"{CONNECTIONS} connections", "end 0"]


def test_where_nobody_listens_is_refused_both_ways(seen: dict[str, Any]) -> None:
    assert seen["refused"]
    assert seen["nobody"].splitlines() == ["connect: Connection reset by peer", "end 1"]


def test_a_reboot_resets_connections_and_the_next_guest_answers(seen: dict[str, Any]) -> None:
    assert seen["reset"] == ["", ""]
    assert seen["again"] == "again"
    assert seen["again-many"].splitlines() == ["3 connections", "end 0"]
    assert seen["left"] == 2  # the two clients of before


def test_nothing_is_complained_about_and_nothing_is_left(seen: dict[str, Any]) -> None:
    assert seen["log"] == "end 1"  # grep has found nothing
    assert (seen["status"], seen["errors"]) == (0, "")
    assert seen["files"] == [f"vsock_{BULK}", f"vsock_{SMALL}"]  # which are not ours
