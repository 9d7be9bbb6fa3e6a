"""``nemu run --host emulated`` with persistent memory and a seed for cloud-init: both reach the guest."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from functional.test_emulated_run import in_guest, run, start, wait_for

MIB = 1 << 20
LOAD = "modprobe -a virtio_pmem nd_pmem; until [ -e /dev/pmem0 ]; do sleep 0.1; done"


def test_what_the_guest_made_durable_survives_the_sudden_end_of_everything(tmp_path: Path) -> None:
    """Neither nemu nor the host that it runs in has time to write anything back."""
    mkfs, debugfs = shutil.which("mkfs.ext4"), shutil.which("debugfs")
    assert mkfs, "install e2fsprogs"
    assert debugfs, "install e2fsprogs"
    image = tmp_path / "pmem.img"
    subprocess.run([mkfs, "-q", "-b", "4096", image, "16M"], check=True, capture_output=True)
    command = (
        f"{LOAD}; mkdir /m; mount -t ext4 -o dax /dev/pmem0 /m; seq 100000 >/m/numbers; sync /m/numbers /m;"
        "echo durable; sleep 1000"
    )
    with start("--pmem", str(image), *in_guest(command)) as process:
        wait_for(process, b"durable")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    # What is in the journal still is put in its place, as a mount would do.
    subprocess.run(["fsck.ext4", "-fy", image], capture_output=True, check=False)
    dump = [debugfs, "-R", "dump numbers numbers", str(image)]
    subprocess.run(dump, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "numbers").read_text().split() == [str(n) for n in range(1, 100001)]


def test_a_seed_is_found_by_its_label_with_the_right_files(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "user-data").write_text("#cloud-config\nhostname: seeded\n")
    (seed / "network-config").write_text("version: 2\n")
    (tmp_path / "disk").write_bytes(bytes(MIB))
    command = (
        "modprobe isofs; device=$(findfs LABEL=cidata); echo device $device;"
        "mkdir /s; mount -t iso9660 -o ro $device /s; cd /s; ls -1; cat user-data network-config meta-data;"
        "cat /sys/block/${device#/dev/}/ro"
    )
    done = run("--cloud-init", str(seed), "--disk", str(tmp_path / "disk"), *in_guest(command))
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode().replace("\r", "")
    assert "device /dev/vdb\nmeta-data\nnetwork-config\nuser-data\n#cloud-config\nhostname: seeded\n" in shown
    assert "version: 2\ninstance-id: nemu-" in shown
    assert shown.partition("instance-id")[2].splitlines()[1] == "1"


def test_a_directory_that_is_no_seed_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = run("--cloud-init", str(tmp_path))
    assert done.returncode == 2
    problem = "has no file user-data (an empty one would do)"
    assert done.stderr.decode() == f"nemu: --cloud-init {tmp_path}: {problem}\n"
