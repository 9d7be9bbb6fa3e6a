"""virtio-scsi: Linux's SCSI layer finds the disks, and what it writes is in the images."""

from __future__ import annotations

import hashlib
import random

import pytest

from functional.guest import Boot, boot, compiled
from functional.rig import Rig

MIB = 1 << 20
SIZE = 4 * MIB
PATTERN = random.Random(9).randbytes(SIZE)
# A disk by its address, as its name depends on which one Linux finds first; it shows LUN 300 as flat space
# addressing has it, 0x4000 above.
NAMES = (
    "name() { ls /sys/class/scsi_disk/0:0:$1/device/block; }; a=$(name 0:0) b=$(name 0:1) c=$(name 5:16684)"
)
COMMANDS = {
    "load": f"modprobe -a virtio_scsi sd_mod; for n in 1 2 3 4 5 6 7 8 9; do "
    "[ $(ls /sys/class/scsi_disk | wc -l) = 3 ] && break; sleep 0.5; done; "
    f"echo '{NAMES}' >/names; . /names; ls /sys/class/scsi_disk",
    "pci": "cat /sys/bus/pci/devices/*/device | grep -c 0x1048",
    "model": "cat /sys/class/scsi_device/0:0:0:0/device/vendor /sys/class/scsi_device/0:0:0:0/device/model",
    "inquiry": "cd /sys/class/scsi_device; hexdump -C 0:0:0:1/device/vpd_pg80 | head -n 1; "
    "tail -c 20 0:0:0:1/device/vpd_pg80; echo; tail -c 28 0:0:0:0/device/vpd_pg83",
    "sizes": ". /names; cat /sys/block/$a/size /sys/block/$b/size /sys/block/$c/size",
    "cache": "cat /sys/class/scsi_disk/*/cache_type /sys/class/scsi_disk/*/FUA",
    "limits": ". /names; cd /sys/block/$b/queue; cat discard_max_bytes physical_block_size rotational "
    "max_hw_sectors_kb write_zeroes_max_bytes; cat /sys/class/scsi_disk/0:0:0:1/provisioning_mode",
    "read": ". /names; dd if=/dev/$a bs=1M iflag=direct 2>/dev/null | sha256sum",
    "odd": ". /names; dd if=/dev/$a bs=512 skip=77 count=3 iflag=direct 2>/dev/null | sha256sum",
    "copy": ". /names; dd if=/dev/$a of=/dev/$b bs=64k conv=fsync 2>&1 | grep -c records",
    "read-back": ". /names; echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/$b",
    "parallel": ". /names; for n in 0 1 2 3; do taskset -c $((n & 1)) dd if=/dev/$a of=/dev/$c bs=64k "
    "count=16 skip=$((n * 16)) seek=$((n * 16)) iflag=direct oflag=direct 2>/dev/null & done; wait; "
    "sha256sum </dev/$c",
    "discard": ". /names; blkdiscard -o 1048576 -l 1048576 /dev/$c && dd if=/dev/$c bs=64k skip=16 count=16 "
    "iflag=direct 2>/dev/null | sha256sum",
    "zeroes": ". /names; /zeroout /dev/$c 2097152 524288; echo $?",
    "refused": ". /names; dd if=/dev/zero of=/dev/$a count=1 2>&1 | head -n 1; cat /sys/block/$a/ro",
    "filesystem": ". /names; mke2fs /dev/$b >/dev/null; mkdir /m; mount -t ext4 /dev/$b /m && "
    "head -c 300000 /dev/$a >/m/f && umount /m && mount -t ext4 /dev/$b /m && sha256sum </m/f; umount /m",
    "rescan": "echo '- - -' >/sys/class/scsi_host/host0/scan; ls /sys/class/scsi_disk | wc -l",
    "errors": "dmesg | grep -iE 'i/o error|blk_update|timeout|abort|fail|sense' | grep -v 'Mode Sense'",
    "log": "dmesg | grep -E 'scsi|sd '",
}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def host_sha(host: Rig, path: str) -> str:
    return host.run(["sha256sum", path]).stdout.split()[0].decode()


@pytest.fixture(scope="module")
def disks(host: Rig) -> Boot:
    """One boot: 0:0 read-only with a pattern, 0:1 and 5:300 empty images."""
    host.put(PATTERN, "/tmp/a.img")
    assert host.run(["truncate", "-s", str(SIZE), "/tmp/b.img", "/tmp/c.img"]).status == 0
    return boot(
        host,
        COMMANDS,
        *("--cpus", "2", "--disk", "/tmp/a.img,readonly=on,bus=scsi"),
        *("--disk", "/tmp/b.img,bus=scsi,scsi-id=0,lun=1,serial=exactly-20-character"),
        *("--disk", "/tmp/c.img,bus=scsi,scsi-id=5,lun=300"),
        programs={"zeroout": compiled("zeroout.c")},
        timeout=250,
    )


def test_linux_finds_the_disks_at_their_addresses(disks: Boot) -> None:
    assert disks.status == 0, disks.stderr + disks.console[-2000:]
    assert disks["load"].split() == ["0:0:0:0", "0:0:0:1", "0:0:5:16684"], disks["log"]
    assert disks["pci"] == "1"
    assert [device["name"] for device in disks.report["devices"]].count("virtio-scsi0") == 1
    assert disks["rescan"] == "3"


def test_they_say_who_they_are(disks: Boot) -> None:
    assert disks["model"].split() == ["nemu", "disk"]
    head, serial, name = disks["inquiry"].split("\n")
    assert head.split()[1:5] == ["00", "80", "00", "14"]
    assert serial == "exactly-20-character"
    assert name.endswith("nemu    0:0")
    assert disks["sizes"].split() == [str(SIZE // 512)] * 3


def test_linux_knows_their_cache_and_limits(disks: Boot) -> None:
    # Linux has no use for the cache of the read-only one, the first.
    assert disks["cache"].split() == ["write", "through", *["write", "back"] * 2, "1", "1", "1"]
    discard, physical, rotational, largest, zeroes, mode = disks["limits"].split()
    assert (discard, physical, rotational, mode) == (str(1 << 30), "4096", "0", "unmap")
    assert int(largest) == 65535 // 2
    assert int(zeroes) == 64 * MIB


def test_the_guest_reads_what_the_image_holds(disks: Boot) -> None:
    assert disks["read"].split()[0] == _sha(PATTERN)
    assert disks["odd"].split()[0] == _sha(PATTERN[77 * 512 : 80 * 512])


def test_what_the_guest_writes_is_in_the_image(disks: Boot, host: Rig) -> None:
    assert disks["read-back"].split()[0] == _sha(PATTERN)
    assert disks["parallel"].split()[0] == _sha(PATTERN)
    assert disks["filesystem"].split()[0] == _sha(PATTERN[:300_000])
    superblock = host.run(["dd", "if=/tmp/b.img", "bs=1024", "skip=1", "count=1"]).stdout
    assert superblock[56:58] == b"\x53\xef"


def test_a_read_only_disk_is_read_only_for_the_guest_and_unchanged(disks: Boot, host: Rig) -> None:
    assert disks["refused"].splitlines()[-1] == "1"
    assert host_sha(host, "/tmp/a.img") == _sha(PATTERN)


def test_discard_and_write_same_make_holes_and_zeroes(disks: Boot, host: Rig) -> None:
    assert disks["discard"].split()[0] == _sha(bytes(MIB))
    assert disks["zeroes"] == "0"
    zeroed = bytes(MIB // 2)
    expected = PATTERN[:MIB] + bytes(MIB) + zeroed + PATTERN[2 * MIB + len(zeroed) :]
    assert host_sha(host, "/tmp/c.img") == _sha(expected)
    blocks = int(host.run(["stat", "-c", "%b", "/tmp/c.img"]).stdout)
    assert blocks * 512 <= SIZE - MIB


def test_the_kernel_complains_about_nothing(disks: Boot) -> None:
    assert disks["errors"] == "", disks["log"]
    assert disks.stderr == ""
