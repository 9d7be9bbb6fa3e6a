"""The small guest's parts: the archive, the modules, the command line word."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemu.errors import HostError
from nemu.host import guest, modules
from nemu.host.cpio import Archive

RELEASE = "6.1.0-test"


def make_module(tree: Path, name: str, depends: str) -> None:
    """A file with the .modinfo strings of a module."""
    path = tree / f"lib/modules/{RELEASE}/kernel/drivers/{name}.ko"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF....license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_module(tmp_path, "virtio", "")
    make_module(tmp_path, "virtio_ring", "virtio")
    make_module(tmp_path, "virtio-rng", "virtio,virtio_ring")
    make_module(tmp_path, "pvpanic-mmio", "pvpanic")
    make_module(tmp_path, "pvpanic", "")
    (tmp_path / f"lib/modules/{RELEASE}/modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return tmp_path


def test_cpio_reads_the_archive_as_it_was_written(tmp_path: Path) -> None:
    archive = Archive()
    archive.directory("d")
    archive.file("d/odd", b"12345", 0o755)
    archive.symlink("d/link", "odd")
    archive.file("last", b"")
    reader = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]
    subprocess.run([*reader, "-i"], input=archive.to_bytes(), cwd=tmp_path, check=True)
    assert (tmp_path / "d/odd").read_bytes() == b"12345"
    assert (tmp_path / "d/odd").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d/link").readlink() == Path("odd")
    assert (tmp_path / "last").read_bytes() == b""


def test_modules_come_after_what_they_depend_on_and_built_in_ones_not_at_all(tree: Path) -> None:
    order = modules.closure(str(tree), RELEASE, ["virtio-rng", "ext4", "pvpanic-mmio"])
    assert list(order) == ["virtio", "virtio_ring", "virtio_rng", "pvpanic", "pvpanic_mmio"]


def test_a_module_that_the_kernel_has_not_is_named(tree: Path) -> None:
    with pytest.raises(HostError, match="no module virtio_gpu"):
        modules.closure(str(tree), RELEASE, ["virtio_gpu"])


def test_modules_dep_lists_every_dependency_the_last_needed_first(tree: Path) -> None:
    archive = Archive()
    modules.add(archive, str(tree), RELEASE, ["virtio-rng"])
    assert b"virtio_rng.ko: virtio_ring.ko virtio.ko\n" in archive.to_bytes()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_command_fits_into_one_word_of_the_command_line(command: str) -> None:
    word = guest.run_option(command)
    assert word.startswith("nemu.run=")
    assert not set(word) & set(" \t\n\"'\\")
    assert unquote(word.removeprefix("nemu.run=")) == command


def test_the_init_script_is_a_valid_shell_script() -> None:
    script = Path(guest.__file__).with_name("guest_init.sh")
    subprocess.run(["sh", "-n", str(script)], check=True)
