"""Seeds for cloud-init, read back by another reader where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pycdlib
import pytest

from nemu import cidata
from nemu.cidata import Seed
from nemu.errors import ConfigError, HostError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "user-data").write_text("#cloud-config\nhostname: x\n")
    return tmp_path


def listed(seed: Seed, facade: str) -> dict[str, bytes]:
    """The files of the image by the names of one of its name extensions."""
    iso = pycdlib.PyCdlib()
    iso.open(seed.path)
    names = getattr(iso, f"get_{facade}_facade")()
    found = {}
    for child in names.list_children("/"):
        if child.is_file():
            name = child.file_identifier().decode("utf-16-be" if facade == "joliet" else "ascii")
            if facade == "rock_ridge":
                name = child.rock_ridge.name().decode()
            with iso.open_file_from_iso(
                **{"joliet_path" if facade == "joliet" else "rr_path": f"/{name}"}
            ) as file:
                found[name] = file.read()
    iso.close()
    return found


@pytest.mark.parametrize("facade", ["rock_ridge", "joliet"])
def test_the_image_has_the_files_under_both_kinds_of_names(folder: Path, facade: str) -> None:
    (folder / "meta-data").write_text("instance-id: mine\n")
    (folder / "network-config").write_bytes(bytes(range(256)) * 20)
    (folder / "README").write_text("not for the guest")
    seed = Seed(str(folder))
    names = {"user-data", "meta-data", "network-config"}
    assert listed(seed, facade) == {name: (folder / name).read_bytes() for name in names}
    seed.close()


def test_the_volume_has_the_label_that_cloud_init_looks_for(folder: Path) -> None:
    seed = Seed(str(folder))
    volume = Path(seed.path).read_bytes()[16 * 2048 : 17 * 2048]  # ECMA-119, 8.4: the primary descriptor
    assert volume[:6] == b"\x01CD001"
    assert volume[40:72].decode().strip() == "cidata"
    assert os.stat(seed.path).st_size % 2048 == 0
    seed.close()
    seed.close()


def test_meta_data_is_made_of_the_contents(folder: Path) -> None:
    first = cidata.read(str(folder))["meta-data"]
    assert first.startswith(b"instance-id: nemu-")
    assert cidata.read(str(folder))["meta-data"] == first
    (folder / "user-data").write_text("#cloud-config\nhostname: y\n")
    assert cidata.read(str(folder))["meta-data"] != first


def refusal(directory: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        cidata.read(str(directory))
    return str(caught.value)


def test_a_directory_that_is_no_seed_is_refused(folder: Path, tmp_path: Path) -> None:
    assert refusal("none") == "--cloud-init none: no such directory, with the file user-data"
    assert "must be a directory" in refusal(folder / "user-data")
    (folder / "user-data").unlink()
    assert refusal(folder).endswith("has no file user-data (an empty one would do)")
    (folder / "user-data").mkdir()
    assert refusal(folder).endswith("user-data: is a directory")
    (folder / "user-data").rmdir()
    (folder / "user-data").symlink_to("nowhere")
    assert refusal(folder).endswith("user-data: no such file or directory")


def test_a_file_without_end_is_refused_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cidata, "MAX_SIZE", 1 << 20)
    (folder / "vendor-data").symlink_to("/dev/zero")
    assert refusal(folder).endswith("is too large: a seed has at most 1 MiB in all")


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "network-config")
    assert cidata.read(str(folder))["network-config"] == b""


def test_a_missing_package_is_one_line_that_helps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycdlib", None)
    with pytest.raises(HostError, match="pip install pycdlib"):
        Seed(str(folder))
