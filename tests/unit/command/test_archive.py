"""What a command's guest finds in its initramfs; cpio and a shell are the judges."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from nemu.command.archive import archive
from nemu.command.prepare import ROOT_TAG
from nemu.config import MachineConfig
from nemu.errors import ConfigError
from unit.boot.kernels import Elf, bzimage

RELEASE = "6.6.0-test"


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """A bzImage that says its release, in the place of its setup code where Linux has it."""
    image = bytearray(bzimage(gzip.compress(Elf().build())))
    image[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    text = f"{RELEASE} (somebody@somewhere) #1\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    (tmp_path / "kernel").write_bytes(image)
    return str(tmp_path / "kernel")


def machine(kernel: str, **values: object) -> MachineConfig:
    settings = {"kernel": kernel, "command": ("true",), "root": "/nowhere", "directory": "/", **values}
    return MachineConfig(**settings)  # type: ignore[arg-type]


def unpacked(config: MachineConfig, place: Path, *streams: str) -> Path:
    """The archive's files; devices need root, and are not of interest."""
    place.mkdir()
    reader = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]
    packed = archive(config, streams)
    subprocess.run(
        [*reader, "-i"], input=packed, cwd=place, stderr=subprocess.DEVNULL, check=os.geteuid() == 0
    )
    return place


def words(place: Path) -> list[bytes]:
    """What the init's shell makes of the job: its positional parameters."""
    script = ". ./job; printf '%s\\0' \"$@\""
    done = subprocess.run(["busybox", "sh", "-c", script], cwd=place, capture_output=True, check=True)
    return done.stdout.split(b"\0")[:-1]


def test_a_shell_reads_every_word_as_it_was_typed(kernel: str, tmp_path: Path) -> None:
    every_byte = os.fsdecode(bytes(range(1, 256)))
    odd = ("printf", "%s", "two words", "it's", '"$HOME"', "a\nb", "", "\\", "*", every_byte)
    config = machine(kernel, command=odd, env=("A=1", "B=x y'z"), directory="/it's here")
    place = unpacked(config, tmp_path / "i", "in", "out")
    *before, last = [b"A=1", b"B=x y'z", b"/bin/busybox", b"nsenter", b"-r.", b"-w./it's here", b"--"], odd
    assert words(place) == [*before[0], *map(os.fsencode, last)]


def test_streams_are_pipes_and_the_job_is_nobody_elses(kernel: str, tmp_path: Path) -> None:
    place = unpacked(machine(kernel), tmp_path / "i", "in", "err")
    assert (place / "in").is_fifo()
    assert (place / "err").is_fifo()
    assert not (place / "out").exists()
    assert (place / "job").stat().st_mode & 0o777 == 0o600
    assert (place / "skeleton/dev/stdin").readlink() == Path("/proc/self/fd/0")


def test_the_root_is_an_overlay_unless_it_shall_be_written(kernel: str, tmp_path: Path) -> None:
    table = (unpacked(machine(kernel), tmp_path / "ro") / "etc/root").read_text()
    assert f"{ROOT_TAG} /lower virtiofs ro" in table
    assert "overlay /new overlay lowerdir=/lower,upperdir=/upper/data" in table
    assert "tmpfs /new/run" in table
    table = (unpacked(machine(kernel, rw=True), tmp_path / "rw") / "etc/root").read_text()
    assert f"{ROOT_TAG} /new virtiofs rw" in table
    assert "overlay" not in table


def test_a_user_in_run_keeps_it(kernel: str, tmp_path: Path) -> None:
    place = unpacked(machine(kernel, directory="/run/user/1000"), tmp_path / "i")
    assert "/new/run" not in (place / "etc/root").read_text()


def test_modules_of_the_kernel_come_from_the_root_unpacked(kernel: str, tmp_path: Path) -> None:
    folder = tmp_path / "root/lib/modules" / RELEASE
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel/virtiofs.ko.xz").write_bytes(lzma.compress(b"virtiofs"))
    (folder / "kernel/fuse.ko.zst").write_bytes(zstandard.compress(b"fuse"))
    (folder / "kernel/virtio-rng.ko.gz").write_bytes(gzip.compress(b"rng"))
    (folder / "kernel/other.ko").write_bytes(b"other")
    (folder / "modules.dep").write_text(
        "kernel/virtiofs.ko.xz: kernel/fuse.ko.zst\nkernel/fuse.ko.zst:\n"
        "kernel/virtio-rng.ko.gz:\nkernel/other.ko:\n"
    )
    place = unpacked(machine(kernel, root=str(tmp_path / "root")), tmp_path / "i") / "lib/modules" / RELEASE
    assert {path.name: path.read_bytes() for path in place.glob("*.ko")} == {
        "virtiofs.ko": b"virtiofs",
        "fuse.ko": b"fuse",
        "virtio_rng.ko": b"rng",
    }
    rows = (place / "modules.dep").read_text().splitlines()
    assert sorted(rows) == ["fuse.ko:", "virtio_rng.ko:", "virtiofs.ko: fuse.ko"]


def test_modules_without_an_index_are_an_error_that_says_so(kernel: str, tmp_path: Path) -> None:
    (tmp_path / "root/lib/modules" / RELEASE).mkdir(parents=True)
    with pytest.raises(ConfigError, match="try depmod"):
        archive(machine(kernel, root=str(tmp_path / "root")), [])


def test_a_vmlinux_tells_its_release_too(tmp_path: Path) -> None:
    folder = tmp_path / "root/lib/modules" / RELEASE
    folder.mkdir(parents=True)
    (folder / "virtiofs.ko").write_bytes(b"v")
    (folder / "modules.dep").write_text("virtiofs.ko:\n")
    (tmp_path / "kernel").write_bytes(Elf(data=f"Linux version {RELEASE} (a@b) 1\0".encode()).build())
    place = unpacked(machine(str(tmp_path / "kernel"), root=str(tmp_path / "root")), tmp_path / "i")
    assert (place / "lib/modules" / RELEASE / "virtiofs.ko").exists()


def test_the_init_is_a_valid_shell_script(kernel: str, tmp_path: Path) -> None:
    place = unpacked(machine(kernel), tmp_path / "i")
    subprocess.run(["busybox", "sh", "-n", str(place / "command")], check=True)
