"""The daemon of a shared directory: how it is started, and what it sees of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.loop import FakeLoop
from nemu.backends import virtiofsd
from nemu.errors import HostError

# What the two programs of this name say of themselves.
OF_QEMU = "usage: virtiofsd [options]\n    -o source=PATH   shared directory tree\n    --fd=FDNUM\n"
IN_RUST = "Usage: virtiofsd [OPTIONS]\n  --shared-dir <SHARED_DIR>\n  --fd <FD>\n  --announce-submounts\n"
LATER_IN_RUST = IN_RUST + "  --no-announce-submounts\n"


def test_the_program_of_qemu_takes_its_own_words() -> None:
    argv = virtiofsd.arguments("/v", OF_QEMU, "never", 3, root=True)
    assert argv[0] == "/v"
    assert "--fd=3" in argv
    assert argv[-1] == "source=/tmp,cache=none,sandbox=namespace,log_level=err"


@pytest.mark.parametrize("usage", [IN_RUST, LATER_IN_RUST])
def test_the_program_in_rust_takes_others(usage: str) -> None:
    argv = virtiofsd.arguments("/v", usage, "never", 3, root=False)
    assert {"--fd=3", "--shared-dir=/tmp", "--cache=never", "--sandbox=chroot"} <= set(argv)
    assert ("--no-announce-submounts" in argv) == (usage == LATER_IN_RUST)


def test_no_program_is_an_error_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "find", lambda: "")
    with pytest.raises(HostError, match=r"--fs tag=t: virtiofsd is not installed; try: apt install"):
        virtiofsd.daemon("--fs tag=t", lambda: None, "auto", 3, FakeLoop())


_LOOK = """
import os, sys
from nemu.backends import mounts
mounts.show_alone(sys.argv[1], readonly=sys.argv[2] == "ro")
for path in sys.argv[3:]:
    try:
        open(mounts.PLACE + path, "a").close()
        print("writable")
    except OSError as error:
        print(error.strerror)
print(sorted(os.listdir(mounts.PLACE)))
"""


def look(directory: str, mode: str, *paths: str, nobody: bool = False) -> list[str]:
    """What a process that shares ``directory`` can write there, and what else it sees."""
    drop = {"user": 65534, "group": 65534, "extra_groups": []} if nobody else {}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, directory, mode, *paths],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        **drop,  # type: ignore[call-overload]
    )
    return list(done.stdout.splitlines())


@pytest.mark.parametrize("nobody", [False, True])
def test_only_the_directory_is_there_and_writable_if_it_shall_be(tmp_path: Path, nobody: bool) -> None:
    if os.geteuid() and nobody:
        nobody = False  # this user is a nobody already
    (tmp_path / "file").touch()
    for place in (tmp_path, *tmp_path.parents[:-2]):
        place.chmod(0o777)
    (tmp_path / "file").chmod(0o666)
    assert look(str(tmp_path), "rw", "/file", nobody=nobody) == ["writable", "['file']"]
    assert look(str(tmp_path), "ro", "/file", nobody=nobody) == ["Read-only file system", "['file']"]


def test_the_root_is_shared_without_what_the_host_shows_of_itself() -> None:
    problem, names = look("/", "ro", "/etc/nemu-test")
    assert problem == "Read-only file system"
    assert "'etc'" in names
    if os.geteuid() == 0:
        assert look("/proc/..", "ro", "/proc/version")[0] == "Read-only file system"
        assert not os.path.exists("/etc/nemu-test")
