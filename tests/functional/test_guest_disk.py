"""virtio-blk: what the guest writes is in the image, what is in the image it reads, errors are errors."""

from __future__ import annotations

import hashlib
import random
import struct

import pytest

from functional.guest import Boot, boot
from functional.rig import Rig

MIB = 1 << 20
SIZE = 4 * MIB
PATTERN = random.Random(8).randbytes(SIZE)
# Reads go to the disk, not to the guest's cache: O_DIRECT or after drop_caches.
INTEGRITY = {
    "read": "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum",
    "copy": "dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync 2>&1 | grep -c records",
    "read-back": "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vdb",
    "odd": "dd if=/dev/vda bs=512 skip=77 count=3 iflag=direct 2>/dev/null | sha256sum",
    "refused": "dd if=/dev/zero of=/dev/vda count=1 conv=fsync 2>&1 | head -n 1; cat /sys/block/vda/ro",
    "serial": "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial",
    "sizes": "cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdd/size",
    "queues": "ls /sys/block/vda/mq | wc -l; ls /sys/block/vdb/mq | wc -l; ls /sys/block/vdd/mq | wc -l",
    "parallel": "for n in 0 1 2 3; do taskset -c $((n & 1)) dd if=/dev/vda of=/dev/vdb bs=64k count=16 "
    "skip=$((n * 16)) seek=$((n * 16)) iflag=direct oflag=direct 2>/dev/null & done; wait; "
    "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vdb",
    # The requests' limits, and the cache that flushes are for.
    "limits": "cd /sys/block/vdb/queue; cat discard_max_bytes write_zeroes_max_bytes write_cache",
    "discard": "blkdiscard -o 1048576 -l 1048576 /dev/vdc && dd if=/dev/vdc bs=64k skip=16 count=16 "
    "iflag=direct 2>/dev/null | sha256sum",
    # A file system's own requests: mkfs discards, the mount flushes.
    "filesystem": "mke2fs /dev/vdd >/dev/null; mkdir /m; mount -t ext4 /dev/vdd /m && "
    "head -c 300000 /dev/vda >/m/f && umount /m && mount -t ext4 /dev/vdd /m && sha256sum </m/f;"
    "rm /m/f; fstrim /m; umount /m",
    "errors": "dmesg | grep -iE 'i/o error|blk_update|timeout' | grep -v vda",
}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def disks(host: Rig) -> Boot:
    """One boot: vda read-only with a pattern, vdb and vdc images, vdd a loop device."""
    host.put(PATTERN, "/tmp/a.img")
    prepare = (
        f"cp /tmp/a.img /tmp/c.img; truncate -s {SIZE} /tmp/b.img /tmp/d.img;"
        "rm -f /dev/loop0; mknod /dev/loop0 b 7 0; losetup /dev/loop0 /tmp/d.img"
    )
    done = host.run(["sh", "-c", prepare])
    assert done.status == 0, done.stderr
    return boot(
        host,
        INTEGRITY,
        *(
            "--cpus",
            "2",
            "--disk",
            "/tmp/a.img,readonly=on,serial=first-disk",
            "--disk",
            "/tmp/b.img,queues=4",
        ),
        *("--disk", "/tmp/c.img", "--disk", "/dev/loop0,queues=1,serial=exactly-20-character"),
    )


def test_the_guest_reads_what_the_image_holds(disks: Boot) -> None:
    assert disks.status == 0, disks.stderr + disks.console[-2000:]
    assert disks["read"].split()[0] == _sha(PATTERN)
    assert disks["odd"].split()[0] == _sha(PATTERN[77 * 512 : 80 * 512])


def test_what_the_guest_writes_is_in_the_image(disks: Boot, host: Rig) -> None:
    assert disks["read-back"].split()[0] == _sha(PATTERN)
    assert host.run(["sha256sum", "/tmp/b.img"]).stdout.split()[0].decode() == _sha(PATTERN)
    assert disks["errors"] == ""


def test_requests_of_several_cpus_at_once_do_not_mix(disks: Boot) -> None:
    assert disks["parallel"].split()[0] == _sha(PATTERN)


def test_a_read_only_disk_is_read_only_for_the_guest_and_unchanged(disks: Boot, host: Rig) -> None:
    assert disks["refused"].splitlines()[-1] == "1"
    assert "Operation not permitted" in disks["refused"] or "Read-only" in disks["refused"]
    assert host.run(["sha256sum", "/tmp/a.img"]).stdout.split()[0].decode() == _sha(PATTERN)


def test_serial_ids_sizes_and_queues_are_the_configured_ones(disks: Boot) -> None:
    assert disks["serial"].split("\n")[0] == "first-disk"
    assert disks["sizes"].split() == [str(SIZE // 512)] * 3
    assert disks["queues"].split() == ["2", "2", "1"]  # Linux uses no more queues than it has CPUs


def test_a_discard_makes_a_hole_that_reads_as_zeroes(disks: Boot, host: Rig) -> None:
    assert disks["discard"].split()[0] == _sha(bytes(MIB))
    blocks, size = map(int, host.run(["stat", "-c", "%b %s", "/tmp/c.img"]).stdout.split())
    assert size == SIZE
    assert blocks * 512 == SIZE - MIB
    expected = PATTERN[:MIB] + bytes(MIB) + PATTERN[2 * MIB :]
    assert host.run(["sha256sum", "/tmp/c.img"]).stdout.split()[0].decode() == _sha(expected)
    assert disks["limits"].split() == [str(1 << 30), str(64 * MIB), "write", "back"]


def test_a_file_system_on_a_block_device_of_the_host_keeps_a_file(disks: Boot, host: Rig) -> None:
    assert disks["filesystem"].split() == [_sha(PATTERN[:300_000]), "-"]
    superblock = host.run(["dd", "if=/tmp/d.img", "bs=1024", "skip=1", "count=1"]).stdout
    assert superblock[56:58] == struct.pack("<H", 0xEF53)


def test_errors_of_the_host_reach_the_guest_as_errors(host: Rig) -> None:
    """An image that becomes shorter while it is in use, and one whose file system is full."""
    prepare = (
        "mkdir -p /tmp/full && mount -t tmpfs -o size=1M tmpfs /tmp/full && truncate -s 4M /tmp/full/f.img &&"
        "truncate -s 4M /tmp/short.img && head -c 4194304 /dev/zero >/tmp/good.img"
    )
    assert host.run(["sh", "-c", prepare]).status == 0
    # The guest tells by the third disk that it is up; this then cuts the first one.
    cutter = (
        "until head -c 5 /tmp/good.img | grep -q ready; do sleep 0.2; done;"
        "truncate -s 1M /tmp/short.img; printf cut | dd of=/tmp/cut.img conv=notrunc"
    )
    host.run(["sh", "-c", "head -c 512 /dev/zero >/tmp/cut.img"])
    watcher = host.start(["sh", "-c", cutter])
    commands = {
        "wait": "echo ready | dd of=/dev/vdc conv=fsync 2>/dev/null; "
        "until head -c 3 /dev/vdd | grep -q cut; do echo 1 >/proc/sys/vm/drop_caches; sleep 0.2; done",
        "inside": "dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null | wc -c",
        "beyond": "dd if=/dev/vda bs=1M skip=2 count=1 iflag=direct of=/dev/null 2>&1 | grep -c 'put error'",
        "full": "dd if=/dev/zero of=/dev/vdb bs=64k count=64 oflag=direct 2>&1 | grep -cE 'error|No space'",
        "healthy": "dd if=/dev/vdc bs=1M iflag=direct 2>/dev/null | wc -c",
        "log": "dmesg | grep -c 'I/O error, dev vd[ab]'",
    }
    paths = ["/tmp/short.img", "/tmp/full/f.img", "/tmp/good.img", "/tmp/cut.img,readonly=on"]
    failed = boot(host, commands, *(word for path in paths for word in ("--disk", path)))
    assert watcher.wait(10) == 0
    assert failed.status == 0, failed.stderr + failed.console[-2000:]
    assert failed.stderr == ""
    assert failed["inside"] == str(MIB)
    assert failed["beyond"] == "1"
    assert failed["full"] == "1"
    assert failed["healthy"] == str(4 * MIB)
    assert int(failed["log"]) >= 2
