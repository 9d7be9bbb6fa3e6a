"""Trees and where they come from; packages that are missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nemu.errors import ConfigError, HostError
from nemu.shrink import deps, process, sources, tree


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "src"
    (place / "d").mkdir(parents=True)
    (place / "a.c").write_text("a")
    (place / "d/b.sh").write_text("b")
    (place / "d/b.sh").chmod(0o755)
    (place / "link").symlink_to("d")
    (place / ".pc").mkdir()
    (place / ".pc/a.c").write_text("before a patch")
    return place


def test_a_copy_has_contents_modes_and_links(folder: Path, tmp_path: Path) -> None:
    found = sources.obtain(str(folder))
    assert found.names == ["a.c", "d/b.sh", "link"]
    copy = Path(found.root)
    assert (copy / "d/b.sh").stat().st_mode & 0o777 == 0o755
    assert (copy / "link").is_symlink()
    assert tree.digest(str(folder), found.names) == tree.digest(found.root, found.names) == found.digest


def test_a_changed_mode_or_content_is_another_source(folder: Path) -> None:
    names = tree.files(str(folder))
    digests = {tree.digest(str(folder), names)}
    (folder / "a.c").chmod(0o755)
    digests.add(tree.digest(str(folder), names))
    (folder / "a.c").write_text("A")
    digests.add(tree.digest(str(folder), names))
    assert len(digests) == 3


def test_a_checkout_counts_with_what_is_under_version_control(folder: Path) -> None:
    for words in (["init", "-q"], ["add", "a.c"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    assert sources.obtain(str(folder)).names == ["a.c"]


def test_removing_files_removes_folders_that_are_empty_then(folder: Path) -> None:
    tree.remove(str(folder), ["d/b.sh", ".pc/a.c"])
    assert sorted(path.name for path in folder.iterdir()) == ["a.c", "link"]


@pytest.mark.parametrize("given", ["./none", "/none/at/all"])
def test_a_directory_that_is_not_there_is_named(given: str) -> None:
    with pytest.raises(ConfigError, match=f"--source {given}: no such directory"):
        sources.obtain(given)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no files"):
        sources.obtain(str(tmp_path / "empty"))


def test_too_little_room_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no room in .*: .* GiB are needed"):
        tree.require_room(str(tmp_path / "not/yet"), 1 << 60)


def test_missing_packages_are_named_with_the_command() -> None:
    with pytest.raises(HostError, match="apt-get install nemu-no-such-package"):
        deps.require(["nemu-no-such-package"], install=False, log="")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x\na.c:1:2: error: 'b' undeclared\nmake: *** Error 1\n", "a.c:1:2: error: 'b' undeclared"),
        (
            "meson.build:1:0: ERROR: File x does not exist.\nmore\n",
            "meson.build:1:0: ERROR: File x does not exist.",
        ),
        ("cc1: error: x\nfatal: No space left on device\n", "fatal: No space left on device"),
        ("only this\n", "only this"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_of_a_failure_is_one_telling_line(text: str, reason: str) -> None:
    assert process.reason(text) == reason
