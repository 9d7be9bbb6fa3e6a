"""The shrinker on whole projects: a made-up one with traps, and lz4 as the distribution has it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemu.cli import main

PROFILE = """
kind = "command"
[build.plain]
commands = ["make"]
products = ["hello"]
environment = { CFLAGS = "-O1 -ffunction-sections", LDFLAGS = "-Wl,--gc-sections" }
tests = ["./hello | grep -q hello"]
[build.loud]
commands = ["make LOUD=1"]
products = ["hello"]
environment = { CFLAGS = "-O1 -ffunction-sections", LDFLAGS = "-Wl,--gc-sections" }
[level.broken.build.plain]
tests = ["./hello | grep -q goodbye"]
"""
FILES = {
    "Makefile": "objects = main.o util.o $(if $(LOUD),loud.o)\n"
    "hello: $(objects)\n\t$(CC) $(LDFLAGS) -o $@ $(objects)\n"
    "main.o: main.c util.h config.mk\nclean:\n\trm -f *.o hello\n",
    "main.c": '#include "util.h"\n#define ADD(what, x) add_##what(x)\n'
    'int main(void)\n{\n    say("hello");\n    return ADD(one, -1);\n}\n',
    "util.h": "void say(const char *text);\nvoid whisper(const char *text);\n\n"
    "static inline int add_one(int x)\n{\n    return x + 1;\n}\n",
    "util.c": "#include <stdio.h>\n#include \"util.h\"\n\n"
    "void say(const char *text)\n{\n    puts(text);\n}\n\n"
    "void whisper(const char *text)\n{\n    putchar(*text);\n}\n",
    "loud.c": "int loud = 1;\n",
    "config.mk": "# make looks whether it is there, nobody reads it\n",
    "unused.c": "int unused;\n",
    "tests/test.c": "int test;\n",
    "COPYING": "free\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for these tests alone: what is measured is no older run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMU_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def project(tmp_path: Path, cache: None) -> Path:
    source = tmp_path / "source"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (tmp_path / "mine.toml").write_text(PROFILE)
    return tmp_path


def shrink(folder: Path, *more: str) -> int:
    return main(["shrink", "run", str(folder / "mine.toml"), "--source", str(folder / "source"),
                 "--out", str(folder / "out"), *more])  # fmt: skip


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_some_build_needs_is_left(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(project / "source")
    assert shrink(project, "--functions") == 0
    out = project / "out"
    # config.mk is looked at only, but make cannot do without it: it was put back.
    assert contents(out / "tree") == set(FILES) - {"unused.c", "tests/test.c"}
    assert (out / "removed.txt").read_text() == "tests/test.c\nunused.c\n"
    assert "whisper" not in (out / "tree/util.c").read_text()
    assert "whisper" not in (out / "tree/util.h").read_text()
    assert contents(project / "source") == before
    report = json.loads((out / "report.json").read_text())
    assert report["files_after"] == len(FILES) - 2
    assert ["util.c", "whisper"] in report["functions"]
    assert any("config.mk" in text for text in report["repairs"])
    # Inlined, so in no symbol table, and named by nobody: only the build can tell that it is needed.
    assert any("add_one" in text for text in report["repairs"])
    assert "add_one" in (out / "tree/util.h").read_text()
    assert capsys.readouterr().out.endswith(f"{out}/report.html\n")
    subprocess.run(["make", "-C", out / "tree", "LOUD=1"], check=True, capture_output=True)


def test_the_patch_makes_the_same_tree(project: Path) -> None:
    assert shrink(project, "--functions") == 0
    copy = project / "copy"
    subprocess.run(["cp", "-a", project / "source", copy], check=True)
    for name in (project / "out/removed.txt").read_text().split("\n")[:-1]:
        (copy / name).unlink()
    (copy / "tests").rmdir()
    subprocess.run(["patch", "-s", "-p1", "-i", project / "out/edits.patch"], cwd=copy, check=True)
    subprocess.run(["diff", "-r", copy, project / "out/tree"], check=True)


def test_a_checkout_gets_a_branch_and_keeps_its_history(project: Path) -> None:
    def git(*words: str) -> str:
        argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(argv, cwd=project / "source", check=True, capture_output=True, text=True).stdout

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert shrink(project, "--git", "small") == 0
    assert git("status", "--porcelain") == ""
    assert git("rev-parse", "small~1") == git("rev-parse", "main")
    assert set(git("ls-tree", "-r", "--name-only", "small").split()) == set(FILES) - {
        "unused.c",
        "tests/test.c",
    }
    assert "code lines" in git("log", "-1", "--format=%B", "small")


@pytest.mark.parametrize(
    ("change", "more", "text"),
    [
        ({}, ("--level", "borken"), "--level borken: unknown; did you mean broken?"),
        ({}, ("--jobs", "0"), "--jobs 0: must be a whole number from 1 to 1024"),
        ({"mine.toml": PROFILE.replace("products", "product")}, (), "did you mean products?"),
        ({}, ("--level", "broken"), "test ./hello failed"),
        ({"source/main.c": "int main(void) { return missing(); }\n"}, (), "make failed"),
    ],
)
def test_a_failure_is_one_line_and_publishes_nothing(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    more: tuple[str, ...],
    text: str,
) -> None:
    for name, content in change.items():
        (project / name).write_text(content)
    assert shrink(project, *more) in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("nemu: ")
    assert text in last
    assert not (project / "out").exists()


def test_an_unknown_option_of_configure_is_a_mistake_in_the_profile(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PROFILE.replace('["make"]', """["echo 'ERROR: unknown option --enable-xyz'; exit 1"]""")
    (project / "mine.toml").write_text(text)
    assert shrink(project) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "nemu: mine: configure --enable-xyz: this source has no such option"


def test_an_interrupted_run_leaves_no_process_and_goes_on_later(project: Path) -> None:
    (project / "source/new.c").write_text("int not_in_the_cache;\n")
    (project / "mine.toml").write_text(
        PROFILE.replace('["make LOUD=1"]', '["make LOUD=1", "exec sleep 4711"]')
    )
    argv = [sys.executable, "-m", "nemu", "shrink", "run", "mine.toml", "--source", "source", "--out", "out"]
    child = subprocess.Popen(argv, cwd=project, stderr=subprocess.PIPE, text=True)
    assert child.stderr
    while "trace loud" not in child.stderr.readline():
        assert child.poll() is None
    while not _sleepers():
        time.sleep(0.05)
    child.terminate()
    child.communicate()
    assert child.returncode == 130
    assert _sleepers() == []
    assert not (project / "out").exists()
    (project / "mine.toml").write_text(PROFILE)
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, check=True)
    assert "trace plain ..." not in done.stderr
    assert "trace loud ..." in done.stderr


def _sleepers() -> list[str]:
    return subprocess.run(
        ["pgrep", "-f", "^sleep 4711"], capture_output=True, text=True, check=False
    ).stdout.split()


def test_a_used_directory_for_the_results_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "out").mkdir()
    (project / "out/mine").write_text("x")
    assert shrink(project) == 2
    assert "is not empty" in capsys.readouterr().err
    assert contents(project / "out") == {"mine"}


def test_lz4_of_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real project; the second run finds everything in the cache and says the same."""
    argv = ["shrink", "run", "lz4", "--functions", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    first = capsys.readouterr()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["files_after"] < report["files_before"] / 4
    for words in (["lib", "liblz4.a"], ["programs", "lz4"]):
        subprocess.run(["make", "-C", *words], cwd=tmp_path / "out/tree", check=True, capture_output=True)
    page = (tmp_path / "out/report.html").read_text()
    assert "<svg" in page
    assert "http" not in page
    assert main([*argv, "--force"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert " ... " not in second.err
