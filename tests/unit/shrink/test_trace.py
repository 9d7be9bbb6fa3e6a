"""Traces: strace's lines become the files of the tree that were opened, or only looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nemu.shrink import trace


def touched(lines: list[str], known: set[str], root: str = "/src") -> trace.Touched:
    return trace.parse(lines, root, known, ("/build", root))


def test_opened_and_seen_are_told_apart() -> None:
    lines = [
        '10 openat(AT_FDCWD</build>, "../src/a.c", O_RDONLY|O_CLOEXEC) = 3</src/a.c>',
        '10 newfstatat(AT_FDCWD</src>, "b.c", {st_mode=S_IFREG|0644, st_size=1, ...}, 0) = 0',
        '10 newfstatat(AT_FDCWD</src>, "c.c", 0x7ffd, 0) = -1 ENOENT (No such file or directory)',
        '10 access("d.c", F_OK) = 0',
        '10 openat(AT_FDCWD</src>, "sub", O_RDONLY|O_DIRECTORY) = 3</src/sub>',
    ]
    found = touched(lines, {"a.c", "b.c", "c.c", "d.c", "sub/e.c"})
    assert found.opened == {"a.c"}
    assert found.seen == {"b.c", "d.c"}


def test_calls_that_were_interrupted_are_put_together() -> None:
    lines = [
        '10 openat(AT_FDCWD</src>, "a.c", O_RDONLY <unfinished ...>',
        '11 openat(AT_FDCWD</src>, "b.c", O_RDONLY) = 3</src/b.c>',
        "10 <... openat resumed>) = 4</src/a.c>",
    ]
    assert touched(lines, {"a.c", "b.c"}).opened == {"a.c", "b.c"}


def test_symbolic_links_are_kept_with_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.c").write_text("x")
    (tmp_path / "link").symlink_to("real")
    lines = [f'10 openat(AT_FDCWD<{tmp_path}>, "link/a.c", O_RDONLY) = 3<{tmp_path}/real/a.c>']
    found = touched(lines, {"link", "real/a.c"}, str(tmp_path))
    assert found.opened == {"link", "real/a.c"}


def test_a_real_trace(tmp_path: Path) -> None:
    """strace itself is the judge of its format."""
    (tmp_path / "read me").write_text("x")
    (tmp_path / "only-seen").write_text("x")
    (tmp_path / "untouched").write_text("x")
    script = 'cat "read me"; test -e only-seen; cat missing; (sleep 0.01; cat "read me") & wait'
    log = str(tmp_path / "log")
    subprocess.run([*trace.command(log), "sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    with open(log, encoding="utf-8") as lines:
        found = trace.parse(lines, str(tmp_path), {"read me", "only-seen", "untouched"}, (str(tmp_path),))
    assert found.opened == {"read me"}
    assert found.seen == {"only-seen"}
