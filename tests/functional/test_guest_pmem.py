"""virtio-pmem: a file of the host as the guest's memory, with a file system on it that has no page cache."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from functional.guest import Boot, arguments, boot, script_text
from functional.inside import Nemu
from functional.rig import Rig

MIB = 1 << 20
PATTERN = random.Random(5).randbytes(MIB)
LOAD = "modprobe -a virtio_pmem nd_pmem; until [ -e /dev/pmem0 ]; do sleep 0.1; done"
MOUNT = f"{LOAD}; mkdir -p /m; mount -t ext4 -o dax /dev/pmem0 /m"


@pytest.fixture(scope="module")
def image(host: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system with a pattern and the program ``dma``, at /tmp/pmem.img in ``host`` as well."""
    gcc, mkfs = shutil.which("gcc"), shutil.which("mkfs.ext4")
    assert gcc, "install gcc"
    assert mkfs, "install e2fsprogs"
    folder = tmp_path_factory.mktemp("pmem")
    contents = folder / "contents"
    contents.mkdir()
    (contents / "pattern").write_bytes(PATTERN)
    source = Path(__file__).with_name("dma.c")
    subprocess.run([gcc, "-O1", "-static", "-o", contents / "dma", source], check=True)
    made = folder / "pmem.img"
    subprocess.run([mkfs, "-q", "-b", "4096", "-d", contents, made, "32M"], check=True, capture_output=True)
    host.put(str(made), "/tmp/pmem.img")
    host.put(str(made), "/tmp/readonly.img")
    return made


COMMANDS = {
    "load": f"{LOAD}; cat /sys/block/pmem0/size /sys/block/pmem1/size /sys/block/pmem0/queue/dax",
    "place": "grep namespace /proc/iomem",
    "mount": "mkdir /m /r; mount -t ext4 -o dax /dev/pmem0 /m; mount -t ext4 -o dax,ro /dev/pmem1 /r;"
    "grep -c 'pmem.* ext4 .*dax=always' /proc/mounts",
    "pattern": "sha256sum </m/pattern; sha256sum </r/pattern",
    "write": "head -c 1000000 /m/pattern >/m/new; sync /m/new; sha256sum </m/new",
    # The disk's device reads the file's memory, then writes it.
    "dma-out": "/m/dma out /m/pattern /dev/vda 1048576; echo $?; echo 3 >/proc/sys/vm/drop_caches;"
    "sha256sum </dev/vda",
    "dma-in": "dd if=/dev/zero of=/m/copy bs=64k count=16 2>/dev/null;"
    "/m/dma in /m/copy /dev/vda 1048576; echo $?; sha256sum </m/copy",
    # Nothing that is stored in a read-only one stays, and a flush does not pretend it did.
    "readonly": "umount /r; dd if=/dev/zero of=/dev/pmem1 bs=4k count=2 seek=100 conv=fsync 2>&1 | "
    "grep -c 'error'; dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>&1 | grep -c 'records out'",
    "unmount": "umount /m; dmesg | grep -iE 'pmem|nvdimm|ext4' | grep -iE 'error|fail|misalign'",
}


@pytest.fixture(scope="module")
def booted(host: Rig, image: Path) -> Boot:
    assert host.run(["truncate", "-s", "1M", "/tmp/disk.img"]).status == 0
    options = ["--pmem", "/tmp/pmem.img", "--pmem", "/tmp/readonly.img,readonly=on"]
    return boot(host, COMMANDS, *options, "--disk", "/tmp/disk.img", "--memory", "256M")


def digest(host: Rig, path: str) -> str:
    return host.run(["sha256sum", path]).stdout.decode().split()[0]


def test_the_guest_finds_the_files_where_the_machine_has_room_for_them(booted: Boot) -> None:
    assert booted.status == 0, booted.stderr + booted.console[-2000:]
    assert booted.stderr == ""
    assert booted["load"].split() == ["65536", "65536", "1"]
    places = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", booted["place"], re.MULTILINE)
    spans = [(int(start, 16), int(end, 16) + 1) for start, end in places]
    assert spans == [(4 << 30, (4 << 30) + 32 * MIB), (5 << 30, (5 << 30) + 32 * MIB)]


def test_a_file_system_on_it_has_no_page_cache_and_the_right_contents(booted: Boot) -> None:
    assert booted["mount"] == "2"
    sums = [line.split()[0] for line in booted["pattern"].splitlines()]
    assert sums == [hashlib.sha256(PATTERN).hexdigest()] * 2


def test_what_the_guest_wrote_is_in_the_hosts_file(booted: Boot, host: Rig, tmp_path: Path) -> None:
    made = tmp_path / "after.img"
    made.write_bytes(host.get("/tmp/pmem.img"))
    debugfs = shutil.which("debugfs")
    assert debugfs, "install e2fsprogs"
    read = subprocess.run(
        [debugfs, "-R", "dump new new", made], cwd=tmp_path, capture_output=True, check=True
    )
    new = (tmp_path / "new").read_bytes()
    assert hashlib.sha256(new).hexdigest() == booted["write"].split()[0], read.stderr
    fsck = shutil.which("fsck.ext4")
    assert fsck
    subprocess.run([fsck, "-fn", made], check=True, capture_output=True)


def test_devices_reach_it_by_dma(booted: Boot) -> None:
    expected = hashlib.sha256(PATTERN).hexdigest()
    assert booted["dma-out"].split()[:2] == ["0", expected]
    assert booted["dma-in"].split()[:2] == ["0", expected]


def test_a_read_only_file_stays_as_it_is_whatever_the_guest_does(
    booted: Boot, host: Rig, image: Path
) -> None:
    assert booted["readonly"].split() == ["1", "1"]  # the flush failed; another device goes on
    assert host.get("/tmp/readonly.img") == image.read_bytes()


def test_linux_has_no_complaint(booted: Boot) -> None:
    assert booted["unmount"] == ""


def shorten(argv: list[str], path: str) -> dict[str, Any]:
    """Runs inside: cut the file while the guest uses it."""
    with Nemu(argv) as nemu:
        nemu.expect("mapped")
        os.truncate(path, 2 << 20)
        return {"status": nemu.wait(), "errors": nemu.stderr()}


def test_a_file_that_becomes_shorter_ends_the_run_with_the_reason(host: Rig) -> None:
    assert host.run(["truncate", "-s", "8M", "/tmp/short.img"]).status == 0
    script = script_text(f"{LOAD}; echo mapped; while :; do cat /dev/pmem0 >/dev/null; done")
    argv = arguments(host, script, "--pmem", "/tmp/short.img")
    done = host.call_here(shorten, argv=argv, path="/tmp/short.img")
    expected = (
        "nemu: --pmem /tmp/short.img: became shorter while it was in use (2097152 bytes left of 8388608)\n"
    )
    assert (done["status"], done["errors"]) == (1, expected)
