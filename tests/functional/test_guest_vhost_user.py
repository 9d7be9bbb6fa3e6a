"""vhost-user in a real guest: qemu-storage-daemon as the field uses it, killed, stopped and returning."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from functional.guest import Boot, arguments, boot, script_text
from functional.inside import Nemu, gone, processes
from functional.rig import Rig

MIB = 1 << 20
SIZE = 8 * MIB
PATTERN = random.Random(3).randbytes(SIZE)
DAEMON = "qemu-storage-daemon"
SHORT_NAME = DAEMON[:15]  # as the kernel has it


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def host() -> Iterator[Rig]:
    with Rig(packages=("qemu-system-common", "qemu-utils")) as rig:
        rig.put(PATTERN, "/tmp/base.img")
        yield rig


def shell(host: Rig, script: str) -> str:
    done = host.run(["sh", "-ec", script])
    assert done.status == 0, done.stderr
    return done.stdout.decode()


def content(host: Rig, image: str) -> str:
    """The checksum of what a guest sees in ``image``, by QEMU's own reading."""
    return shell(host, f"qemu-img convert -O raw {image} /tmp/content; sha256sum </tmp/content").split()[0]


COMMANDS = {
    "chain": "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum",
    "socket": "dd if=/dev/vdb bs=1M iflag=direct 2>/dev/null | sha256sum",
    "limited": "dd if=/dev/vdc bs=64k iflag=direct 2>/dev/null | sha256sum",
    "before": "grep virtio /proc/interrupts",
    "parallel": "for n in 0 1 2 3; do taskset -c $((n & 1)) dd if=/dev/vdb of=/dev/vda bs=64k count=32 "
    "skip=$((n * 32)) seek=$((n * 32)) iflag=direct oflag=direct 2>/dev/null & done; wait; "
    "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum",
    "write": "dd if=/dev/vdb of=/dev/vda bs=64k count=16 seek=8 conv=notrunc,fsync 2>&1 | grep -c records",
    "cache": "cat /sys/block/vd[abd]/queue/write_cache",
    "queues": "ls /sys/block/vda/mq | wc -l; ls /sys/block/vdb/mq | wc -l",
    "readonly": "cat /sys/block/vdd/ro; dd if=/dev/zero of=/dev/vdd count=1 conv=fsync 2>&1 | head -n 1",
    "discard": "blkdiscard -o 4194304 -l 1048576 /dev/vda; "
    "dd if=/dev/vda bs=1M skip=4 count=1 iflag=direct 2>/dev/null | sha256sum",
    "filesystem": "mke2fs /dev/vdb >/dev/null; mkdir /m; mount -t ext4 /dev/vdb /m && "
    "head -c 300000 /dev/vdc >/m/f && umount /m && mount -t ext4 /dev/vdb /m && sha256sum </m/f",
    "errors": "dmesg | grep -iE 'i/o error|blk_update|timeout|not a head' | grep -v vdd",
}


@pytest.fixture(scope="module")
def disks(host: Rig) -> Boot:
    """One boot: qcow2 on a backing file, the user's own daemon, a raw image with limits, one read-only."""
    shell(
        host,
        f"cd /tmp; qemu-img create -q -f qcow2 -b base.img -F raw top.qcow2; truncate -s {SIZE} plain.img; "
        "cp base.img limited.img; qemu-img convert -O qcow2 base.img fixed.qcow2; cp base.img socket.img",
    )
    export = (
        "type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path=/tmp/blk"
    )
    daemon = host.start(
        [DAEMON, "--blockdev", "driver=file,node-name=disk,filename=/tmp/socket.img", "--export", export]
    )
    shell(host, "until test -S /tmp/blk; do sleep 0.1; done")
    booted = boot(
        host,
        COMMANDS,
        *("--cpus", "2", "--disk", "/tmp/top.qcow2", "--disk", "vhost-user=/tmp/blk"),
        *("--disk", "/tmp/limited.img,bps=16M,iops=2000", "--disk", "/tmp/fixed.qcow2,readonly=on"),
    )
    daemon.signal(15)
    daemon.wait(10)
    return booted


def test_the_guest_reads_what_is_in_the_images(disks: Boot) -> None:
    assert disks.status == 0, disks.stderr + disks.console[-2000:]
    assert disks.stderr == ""
    for name in ("chain", "socket", "limited", "parallel"):
        assert disks[name].split()[0] == sha(PATTERN), name
    assert disks["errors"] == ""


def test_what_it_writes_is_in_the_image_and_the_backing_file_is_not_touched(disks: Boot, host: Rig) -> None:
    assert disks["write"] == "2"
    expected = bytearray(PATTERN)
    expected[8 * 65536 : 24 * 65536] = PATTERN[: 16 * 65536]
    expected[4 * MIB : 5 * MIB] = bytes(MIB)
    assert content(host, "/tmp/top.qcow2") == sha(bytes(expected))
    assert content(host, "/tmp/base.img") == sha(PATTERN)
    assert "No errors were found" in shell(host, "qemu-img check /tmp/top.qcow2")
    assert disks["discard"].split()[0] == sha(bytes(MIB))


def test_flushes_are_asked_for_and_not_made_of_every_write(disks: Boot) -> None:
    assert disks["cache"].split("\n") == [
        "write back",
        "write through",
        "write back",
    ]  # vdb: its owner's choice


def test_queues_and_read_only_disks_are_as_configured(disks: Boot, host: Rig) -> None:
    assert disks["queues"].split() == ["2", "2"]
    assert disks["readonly"].split()[0] == "1"
    assert content(host, "/tmp/fixed.qcow2") == sha(PATTERN)


def test_a_file_system_on_the_users_own_daemon_keeps_a_file(disks: Boot) -> None:
    assert disks["filesystem"].split() == [sha(PATTERN[:300_000]), "-"]


def test_no_transfer_passes_through_python(disks: Boot) -> None:
    """Thousands of requests: neither a notification nor an interrupt shows among the exits."""
    registers = {name for name in disks.report["exits"]["by_register"] if name.startswith("virtio-blk")}
    assert registers
    assert not [name for name in registers if "notify" in name or "isr" in name]
    # All of them set-up, the same few for each disk.
    total = sum(
        count
        for name, count in disks.report["exits"]["by_register"].items()
        if name.startswith(("virtio-blk0 ", "virtio-blk1 "))
    )
    assert total < 300


def test_nothing_is_left_of_a_run(disks: Boot, host: Rig) -> None:
    assert disks.status == 0
    assert host.call_here(left) == []
    assert shell(host, "ls /tmp | grep -c ^nemu- || true").strip() == "0"


def left() -> list[int]:
    """Runs inside: daemons that live."""
    gone(lambda: processes(SHORT_NAME))
    return processes(SHORT_NAME)


# --- daemons that die ------------------------------------------------------------------------------

# Every block is written again and again with new content, read back each time, and must be the last one's
# in the end: a request that is lost hangs, one that is done late or twice brings old content back.
LOAD = """
head -c 262144 /dev/urandom >/tmp/r
writer() {
    round=0
    while [ ! -e /tmp/stop ]; do
        round=$((round + 1))
        { echo "$1 $2 $round"; cat /tmp/r; } | head -c 262144 >/tmp/$1$2
        dd if=/tmp/$1$2 of=/dev/$1 bs=16k seek=$(($2 * 16)) oflag=direct conv=notrunc 2>/dev/null ||
            echo FAILED to write
        dd if=/dev/$1 bs=16k skip=$(($2 * 16)) count=16 iflag=direct 2>/dev/null | cmp - /tmp/$1$2 ||
            echo FAILED in round $round
    done
    echo WRITER $1 $2: $round rounds
}
dd if=/tmp/r of=/dev/vdc bs=64k oflag=direct 2>/dev/null
for n in 0 1; do for disk in vda vdb; do writer $disk $n & done; done
echo LOAD
while read line; do echo "heard $line"; [ $line = stop ] && break; done
touch /tmp/stop
wait
for disk in vda vdb; do cat /tmp/${disk}0 /tmp/${disk}1 | sha256sum; done
dmesg | grep -iE 'i/o error|blk_update|not a head'
echo DONE
"""


def under_load(argv: list[str]) -> dict[str, Any]:
    """Runs inside: kill and stop the daemons of a nemu whose guest works on its disks."""
    import os
    import signal

    with Nemu(argv) as nemu:
        shown = nemu.expect("LOAD")
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
            time.sleep(1.5)
            daemons = processes(SHORT_NAME)
            for daemon in daemons:
                os.kill(daemon, number)
            nemu.type(f"{number.name}\n")
            shown += nemu.expect(f"heard {number.name}")  # the machine lives meanwhile
            if number == signal.SIGSTOP:
                time.sleep(1.0)
                for daemon in daemons:
                    os.kill(daemon, signal.SIGCONT)
        time.sleep(1.5)
        nemu.type("stop\n")
        shown += nemu.expect("DONE")
        status = nemu.wait()
        return {"status": status, "shown": shown, "stderr": nemu.stderr()}


LOADED = ("/tmp/through.qcow2,cache=writethrough", "/tmp/load.img,iops=100000", "/tmp/back.qcow2")


@pytest.fixture(scope="module")
def loaded(host: Rig) -> dict[str, Any]:
    """One boot whose daemons die twice and hang once while its guest works."""
    for disk in LOADED:
        image = disk.partition(",")[0]
        shell(host, f"qemu-img create -q -f {'qcow2' if 'qcow2' in image else 'raw'} {image} 512K")
    options = [word for disk in LOADED for word in ("--disk", disk)]
    argv = arguments(host, script_text(LOAD), "--cpus", "2", *options)
    result: dict[str, Any] = host.call_here(under_load, argv=argv, timeout=240)
    return result


def test_no_request_is_lost_or_done_twice_when_daemons_die_and_hang(
    loaded: dict[str, Any], host: Rig
) -> None:
    shown = loaded["shown"]
    assert loaded["status"] == 0, loaded
    assert shown.count("WRITER") == 4
    for problem in ("FAILED", "error", "not a head"):
        assert problem not in shown, shown
    sums = re.findall(r"([0-9a-f]{64})  -", shown)
    assert sums == [content(host, "/tmp/through.qcow2"), content(host, "/tmp/load.img")]
    lines = loaded["stderr"].splitlines()
    for disk in LOADED[:2]:
        about = [line for line in lines if f"--disk {disk.partition(',')[0]}: " in line]
        assert len(about) == 4, lines
        assert all("waits for it to return" in line for line in about[::2])
        assert all("is back" in line for line in about[1::2])


def test_a_daemon_that_dies_with_tables_in_its_memory_stops_its_disk(loaded: dict[str, Any]) -> None:
    stopped = [line for line in loaded["stderr"].splitlines() if "stopped" in line]
    assert stopped == [
        "nemu: virtio-blk2 stopped: the back end was lost, and with it what it had not written"
    ]


def killed_after_sync(argv: list[str]) -> dict[str, Any]:
    """Runs inside: SIGKILL for nemu as soon as the guest has flushed, in its second life."""
    import signal

    with Nemu(argv) as nemu:
        shown = nemu.expect("SYNCED")
        daemons = len(processes(SHORT_NAME))
        nemu.signal(signal.SIGKILL)
        nemu.wait()
        left = not gone(lambda: processes(SHORT_NAME))
        return {"shown": shown, "stderr": nemu.stderr(), "daemons": daemons, "left": left}


def test_flushed_data_survive_a_reboot_and_a_nemu_that_is_killed(host: Rig) -> None:
    shell(host, f"cd /tmp; qemu-img create -q -f qcow2 sync.qcow2 {SIZE}")
    script = (
        "if head -c 5 /dev/vda | grep -q first; then dd if=/dev/vda bs=64k skip=1 count=16 2>/dev/null | "
        "sha256sum; dd if=/dev/vdb of=/dev/vda bs=64k conv=fsync,notrunc 2>/dev/null; echo SYNCED;"
        "sleep 1000; else echo first | dd of=/dev/vda conv=notrunc 2>/dev/null; "
        "dd if=/dev/vdb of=/dev/vda bs=64k seek=1 count=16 conv=notrunc,fsync 2>/dev/null; reboot -f; fi"
    )
    options = ("--disk", "/tmp/sync.qcow2", "--disk", "/tmp/base.img,readonly=on")
    result = host.call_here(killed_after_sync, argv=arguments(host, script_text(script), *options))
    assert sha(PATTERN[: 16 * 65536]) in result["shown"]
    assert (result["daemons"], result["left"], result["stderr"]) == (1, False, "")
    assert "No errors were found" in shell(host, "qemu-img check /tmp/sync.qcow2")
    assert content(host, "/tmp/sync.qcow2") == sha(PATTERN)


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "disk", "line"),
    [
        ("printf 'QFI\\373' >x.qcow2; truncate -s 4096 x.qcow2", "x.qcow2", "Unsupported qcow2 version 0"),
        (
            "qemu-img create -q -f qcow2 -u -b nowhere.img -F raw x.qcow2 1M",
            "x.qcow2",
            "Could not open backing file: Could not open '/tmp/nowhere.img': No such file or directory",
        ),
        ("cp base.img x.img", "x.img,format=qcow2", "is no qcow2 image; add ,format=raw if it is a raw one"),
    ],
)
def test_a_bad_image_is_refused_in_one_line(host: Rig, prepare: str, disk: str, line: str) -> None:
    shell(host, f"cd /tmp; rm -f x.*; {prepare}")
    done = host.run_nemu(["run", "--kernel", "/run/guest/kernel", "--disk", f"/tmp/{disk}"])
    error = done.stderr.decode()
    assert done.status == 2, error
    assert error.startswith(f"nemu: --disk /tmp/{disk.partition(',')[0]}: ")
    assert error.count("\n") == 1
    assert line in error
    assert host.call_here(left) == []


def test_an_image_in_use_is_refused_in_one_line(host: Rig) -> None:
    shell(host, "cd /tmp; rm -f x.qcow2 x.ready; qemu-img create -q -f qcow2 x.qcow2 1M")
    holder = host.start(
        [
            *(DAEMON, "--pidfile", "/tmp/x.ready", "--blockdev"),
            "driver=qcow2,node-name=d,file.driver=file,file.filename=/tmp/x.qcow2",
        ]
    )
    shell(host, "until test -s /tmp/x.ready; do sleep 0.1; done")
    done = host.run_nemu(["run", "--kernel", "/run/guest/kernel", "--disk", "/tmp/x.qcow2"])
    holder.signal(9)
    holder.wait(10)
    assert done.status == 2
    assert done.stderr.decode().startswith(
        'nemu: --disk /tmp/x.qcow2: qemu-storage-daemon: Failed to get "write" lock'
    )
    assert done.stderr.count(b"\n") == 1
