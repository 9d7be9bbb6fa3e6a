"""The cache: entries appear whole or not at all, once, whatever happens meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nemu.errors import HostError
from nemu.host import cache


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("NEMU_CACHE", str(place))
    return place


def write_slowly(directory: str) -> None:
    time.sleep(0.2)
    (Path(directory) / "file").write_text(str(os.getpid()))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.root() == "/somewhere/nemu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.root() == "/home/me/.cache/nemu"


def test_an_entry_is_built_once(root: Path) -> None:
    built = []

    def build(directory: str) -> None:
        built.append(directory)
        (Path(directory) / "file").write_text("made")

    first = cache.entry("kind", "key", ("file",), build)
    assert cache.entry("kind", "key", ("file",), build) == first == str(root / "kind/key")
    assert len(built) == 1


def test_two_processes_at_once_build_one_entry(root: Path) -> None:
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                cache.entry("kind", "key", ("file",), write_slowly)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert int((root / "kind/key/file").read_text()) in children
    assert os.listdir(root / "kind") == ["key"]


def test_a_build_that_fails_leaves_nothing(root: Path) -> None:
    def fail(directory: str) -> None:
        (Path(directory) / "half").write_text("half")
        raise HostError("no network")

    with pytest.raises(HostError, match="no network"):
        cache.entry("kind", "key", ("file",), fail)
    assert os.listdir(root / "kind") == []


def test_a_half_deleted_entry_is_built_again(root: Path) -> None:
    place = Path(cache.entry("kind", "key", ("file",), write_slowly))
    (place / "other").write_text("stays when somebody deletes in the wrong moment")
    (place / "file").unlink()
    cache.entry("kind", "key", ("file",), write_slowly)
    assert (place / "file").exists()
    assert not (place / "other").exists()


def test_leftovers_of_a_dead_process_are_swept_but_not_those_of_a_living_one(root: Path) -> None:
    parent = root / "kind"
    parent.mkdir(parents=True)
    dead = parent / ".tmp-dead"
    dead.mkdir()
    old = time.time() - 3600
    os.utime(dead, (old, old))
    with cache.scratch(str(parent)) as living:
        os.utime(living, (old, old))
        with cache.scratch(str(parent)):
            assert not dead.exists()
            assert Path(living).exists()
    assert os.listdir(parent) == []


def test_only_the_latest_used_entries_are_kept(root: Path) -> None:
    def build(directory: str) -> None:
        (Path(directory) / "file").touch()

    for number in range(3):
        place = cache.entry("kind", str(number), ("file",), build, keep=2)
        os.utime(place, (number, number))
    assert sorted(os.listdir(root / "kind")) == ["1", "2"]
    cache.entry("kind", "1", ("file",), build, keep=2)  # used: younger than 2 now
    cache.entry("kind", "3", ("file",), build, keep=2)
    assert sorted(os.listdir(root / "kind")) == ["1", "3"]


def test_a_cache_that_cannot_be_made_is_told_with_a_remedy(root: Path) -> None:
    root.write_text("a file is in the way")
    with pytest.raises(HostError, match="NEMU_CACHE"):
        cache.entry("kind", "key", ("file",), write_slowly)


def test_progress_is_one_line_in_a_log_and_silent_when_nothing_is_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cache.Progress("building it"):
        pass
    assert capsys.readouterr().err == ""
    with cache.Progress("building it") as step:
        step("first")
        step("second")
    assert capsys.readouterr().err == "nemu: building it (first use)\n"
