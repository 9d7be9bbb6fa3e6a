"""Directories of the host in a guest: virtiofs with the real daemon, which also dies."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from functional.guest import arguments, boot, script_text
from functional.inside import Nemu, gone, processes
from functional.rig import Rig

SHARE, READONLY, SOCKET = "/srv/share", "/srv/readonly", "/run/fs.sock"
COUNT, LARGE = 1000, 8 << 20
MOUNT = "modprobe virtiofs; mkdir /m /r /s; mount -t virtiofs share /m"


@pytest.fixture(scope="module")
def host() -> Iterator[Rig]:
    with Rig(packages=("qemu-system-common",)) as rig:
        yield rig


def sums(top: str) -> dict[str, str]:
    """Path -> SHA-256 of every file below ``top``."""
    found = {}
    for place, _, names in os.walk(top):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def prepare() -> None:
    """Runs inside: a thousand files of many sizes and names, a large one, links and modes."""
    source = random.Random(5)
    for number in range(COUNT):
        path = f"{SHARE}/in/d{number % 13}/{'ä b' * (number % 5)}{number}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(source.randbytes(source.choice([0, 1, 100, 4095, 4096, 4097, 20_000])))
    with open(f"{SHARE}/in/large", "wb") as file:
        file.write(source.randbytes(LARGE))
    os.chmod(f"{SHARE}/in/large", 0o4751)
    os.symlink("d0/../large", f"{SHARE}/in/link")
    os.makedirs(READONLY)
    with open(f"{READONLY}/file", "w", encoding="ascii") as file:
        file.write("precious\n")


def serve_at_socket() -> int:
    """Runs inside: a virtiofsd of the user's."""
    argv = ["/usr/lib/qemu/virtiofsd", f"--socket-path={SOCKET}", "-o", f"source={READONLY}"]
    daemon = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    while not os.path.exists(SOCKET):
        assert daemon.poll() is None
        time.sleep(0.05)
    return daemon.pid


def compare() -> dict[str, Any]:
    """Runs inside: what the guest read, and what it wrote, beside what was there."""
    expected = sums(f"{SHARE}/in")
    with open(f"{SHARE}/sums", encoding="utf-8") as file:
        read = {line[66:].rstrip("\n").removeprefix("./"): line[:64] for line in file}
    return {
        "count": len(expected),
        "read": read == expected,
        "written": sums(f"{SHARE}/out") == expected,
        "mode": oct(os.stat(f"{SHARE}/out/large").st_mode & 0o7777),
        "link": os.readlink(f"{SHARE}/out/link"),
        "readonly": os.listdir(READONLY),
    }


def test_a_thousand_files_are_the_same_on_both_sides(host: Rig) -> None:
    host.call_here(prepare)
    host.call_here(serve_at_socket)
    commands = {
        "mount": f"{MOUNT} && mount -t virtiofs readonly /r && mount -t virtiofs theirs /s && echo done",
        "read": "cd /m/in && find . -type f -print0 | xargs -0 sha256sum >/m/sums; stat -c %a large",
        "write": "cp -a /m/in /m/out && sync && echo done",
        "link": "readlink /m/in/link; cmp /m/in/link /m/in/large && echo same",
        "refused": "cat /r/file; for n in 1 2; do echo x >/r/file; rm /r/file; mount -o remount,rw /r; done",
        "socket": "cat /s/file",
    }
    done = boot(
        host,
        commands,
        *("--fs", f"tag=share,dir={SHARE}"),
        *("--fs", f"tag=readonly,dir={READONLY},readonly=on"),
        *("--fs", f"tag=theirs,socket={SOCKET}"),
        timeout=240,
    )
    assert done["mount"] == "done", done.console
    assert (done["read"], done["write"]) == ("4751", "done")
    assert done["link"] == "d0/../large\nsame"
    refused = done["refused"].splitlines()
    assert refused[0] == "precious"
    assert sum("Read-only file system" in line for line in refused) == 4, refused
    assert done["socket"] == "precious"
    assert host.call_here(compare) == {
        "count": COUNT + 1,
        "read": True,
        "written": True,
        "mode": "0o4751",
        "link": "d0/../large",
        "readonly": ["file"],
    }
    assert done.stderr == ""
    assert host.call_here(all_gone), "virtiofsd outlived the run"


def all_gone() -> bool:
    """Runs inside: whether no daemon is left, the user's own included, which ends with its client."""
    return gone(lambda: processes("virtiofsd"))


# Runs in the guest: reads until that fails, then mounts again.
_READER = f"""
{MOUNT}
echo 3 >/proc/sys/vm/drop_caches
echo reading
while cat /m/in/large >/dev/null; do echo 3 >/proc/sys/vm/drop_caches; done
echo failed
until umount /m; do sleep 0.2; done
until mount -t virtiofs share /m; do sleep 0.5; done
cmp /m/in/link /m/in/large && echo works again
sleep 1000
"""


def kill_the_daemon(argv: list[str]) -> dict[str, Any]:
    """Runs inside: end virtiofsd under load, then nemu, both without warning."""
    with Nemu(argv) as nemu:
        nemu.expect("reading")
        time.sleep(1)
        for pid in processes("virtiofsd"):
            os.kill(pid, signal.SIGKILL)
        nemu.expect("failed")
        nemu.expect("works again")
        restarted = len(processes("virtiofsd"))
        said = nemu.stderr()
        nemu.signal(signal.SIGKILL)
        nemu.wait()
        return {"restarted": restarted, "said": said, "gone": gone(lambda: processes("virtiofsd"))}


def test_a_daemon_that_dies_gives_the_guest_errors_until_it_mounts_again(host: Rig) -> None:
    argv = arguments(host, script_text(_READER), "--fs", f"tag=share,dir={SHARE}")
    seen = host.call_here(kill_the_daemon, argv=argv, timeout=240)
    assert seen["restarted"] >= 1
    lost, back = seen["said"].splitlines()
    assert lost.startswith("nemu: --fs tag=share: ")
    assert "waits for it to return" in lost
    assert back == "nemu: --fs tag=share: the back end is back"
    assert seen["gone"], "virtiofsd outlived nemu"


def test_a_directory_that_cannot_be_shared_is_one_line(host: Rig) -> None:
    for value, line in (
        ("tag=x,dir=/none", "--fs tag=x dir=/none: no such file or directory"),
        ("tag=x,socket=/etc/passwd", "--fs tag=x socket=/etc/passwd: is no socket"),
    ):
        done = host.run_nemu(["run", "--kernel", "/run/guest/kernel", "--fs", value])
        assert (done.status, done.stderr.decode()) == (2, f"nemu: {line}\n")
