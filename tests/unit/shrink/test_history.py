"""Past fixes: which code they changed, and what became of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nemu.shrink import history

NAMES = [
    "hw/ide/ahci.c", "hw/net/e1000.c", "hw/net/vmxnet3.c", "hw/display/vmware_vga.c", "hw/usb/hcd-ohci.c",
    "nbd/server.c", "ui/vnc-clipboard.c", "net/net.c", "tests/unit/e1000.c",
    "hw/9pfs/9p.c", "hw/9pfs/9p-util.h",
]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "files"),
    [
        ("hw/ide/ahci: fix reset (CVE-2023-0001)", {"hw/ide/ahci.c"}),
        ("nbd/server: CVE-2023-0001: Cap connections", {"nbd/server.c"}),
        ("net-vmxnet3-check-header-CVE-2023-0001.patch (Closes: #1)", {"hw/net/vmxnet3.c"}),
        ("vmsvga-move-fifo-checks-CVE-2023-0001.patch", {"hw/display/vmware_vga.c"}),
        ("usb-ohci-limit-eds-CVE-2023-0001.patch", {"hw/usb/hcd-ohci.c"}),
        ("new release Closes: CVE-2023-0001 (e1000: infinite loop)", {"hw/net/e1000.c"}),
        ("9pfs: prevent opening special files (CVE-2023-0001)", {"hw/9pfs/9p.c", "hw/9pfs/9p-util.h"}),
        ("many: CVE-2023-0001 CVE-2023-0002 CVE-2023-0003 CVE-2023-0004", set()),
        ("something in general, CVE-2023-0001", set()),
    ],
)
def test_an_entry_of_the_changelog_names_its_files(item: str, files: set[str]) -> None:
    assert history.from_changelog(f"qemu (1) x;\n\n  * {item}\n\n -- me\n", NAMES)["CVE-2023-0001"] == files


def test_fixes_are_sorted_by_what_is_left() -> None:
    fixes = {"A": {"a.c"}, "B": {"a.c", "b.c"}, "C": {"b.c"}, "D": set()}
    surface = history.judge(fixes, {"b.c"}, "test")
    assert (surface.gone, surface.partly, surface.kept, surface.unknown) == (["A"], ["B"], ["C"], ["D"])
    assert surface.known == 3


def test_commits_that_name_a_cve_give_their_files(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    for name, message in (
        ("a.c", "fix CVE-2020-0001"),
        ("b.c", "other"),
        ("tests/t.c", "CVE-2020-0002 test"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        git("add", name)
        git("commit", "-q", "-m", message)
    assert history.from_git(str(tmp_path)) == {"CVE-2020-0001": {"a.c"}, "CVE-2020-0002": set()}
