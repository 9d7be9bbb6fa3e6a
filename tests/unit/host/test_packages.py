"""Distribution packages: which sources count, what is asked of apt, and what a user reads when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemu.errors import HostError
from nemu.host import packages

DEB822 = """\
# a comment
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main non-free
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://thirdparty.example/
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] http://security.example/debian-security bookworm-security main # here
deb-src http://mirror.example/debian bookworm main
deb http://docker.example/linux/debian bookworm stable
"""
# Answers as apt-get does; the log tells what was asked.
FAKE_APT = """#!/bin/sh
echo "$*" >>"$LOG"
case $1 in
update) [ -z "$BROKEN" ] || { echo "E: $BROKEN" >&2; exit 100; } ;;
install)
    echo "Inst libc6 (2.36-9 Debian:12/stable [amd64])"
    echo "Inst tool (1:1.0-1 Debian:12/stable [amd64]) []"
    echo "Conf tool (1:1.0-1 Debian:12/stable [amd64])"
    ;;
download)
    shift 2
    for target; do
        name=${target%%:*} version=${target#*=}
        echo "$target" >"${name}_$(echo "$version" | sed s/:/%3a/)_amd64.deb"
    done
    ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian machine with a fake apt-get and an empty cache."""
    etc, programs = tmp_path / "etc/apt", tmp_path / "bin"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "sources.list.d/debian.sources").write_text(DEB822)
    (etc / "sources.list").write_text(ONE_LINE)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    programs.mkdir()
    for name, text in (
        ("apt-get", FAKE_APT),
        ("apt-config", "#!/bin/sh\necho 'Acquire::http::Proxy \"http://p\";'\n"),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("NEMU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "APT_DIRECTORY", str(etc))
    monkeypatch.setattr(packages, "OS_RELEASE", str(tmp_path / "os-release"))
    return tmp_path


def asked(machine: Path) -> list[str]:
    log = machine / "log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_only_sources_of_this_debian_count(machine: Path) -> None:
    sources = packages._debian_sources()
    assert "http://mirror.example/debian\nSuites: bookworm bookworm-updates\n" in sources
    assert "http://security.example/debian-security\nSuites: bookworm-security\n" in sources
    assert "Signed-By: /k.gpg" in sources
    assert not any(
        word in sources for word in ("thirdparty", "docker", "off.example", "non-free", "backports")
    )


def test_packages_come_with_their_dependencies_and_a_digest_in_their_names(machine: Path) -> None:
    found = packages.fetch(["tool"])
    assert [(package.name, package.version) for package in found] == [
        ("libc6", "2.36-9"),
        ("tool", "1:1.0-1"),
    ]
    assert Path(found[1].path).read_text() == "tool:amd64=1:1.0-1\n"
    assert len(Path(found[1].path).stem.rpartition("-")[2]) == 16


def test_the_second_time_nothing_is_asked(machine: Path) -> None:
    first = packages.fetch(["tool"])
    (machine / "log").unlink()
    assert packages.fetch(["tool"]) == first
    assert asked(machine) == []


def test_a_known_package_is_not_downloaded_again_for_another_request(machine: Path) -> None:
    packages.fetch(["tool"])
    (machine / "log").unlink()
    assert [package.name for package in packages.fetch(["tool"], only=("tool",))] == ["tool"]
    assert asked(machine) == ["install"]


def test_a_deleted_file_is_fetched_again(machine: Path) -> None:
    package = packages.fetch(["tool"])[1]
    os.unlink(package.path)
    os.unlink(machine / "cache/pool" / os.path.basename(package.path))
    assert os.path.exists(packages.fetch(["tool"])[1].path)


def test_no_network_is_one_line_and_leaves_nothing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "Failed to fetch http://mirror.example/debian")
    with pytest.raises(HostError, match=r"apt-get update failed: Failed to fetch .* network") as caught:
        packages.fetch(["tool"])
    assert "\n" not in str(caught.value)
    assert os.listdir(machine / "cache/packages") == []


def test_a_machine_without_apt_is_told_what_to_do(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="--kernel and --initrd"):
        packages.fetch(["tool"])


def test_a_machine_without_debian_sources_is_told_what_to_do(machine: Path) -> None:
    (machine / "os-release").write_text("ID=other\nVERSION_CODENAME=noble\n")
    with pytest.raises(HostError, match="no Debian package source"):
        packages.fetch(["tool"])


def test_apt_keeps_this_machines_proxy_and_nothing_else_of_it(machine: Path) -> None:
    packages.fetch(["tool"])
    settings = (machine / "cache/apt/amd64/apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://p";' in settings
    assert 'Dir::Etc::parts "' in settings
    assert 'APT::Architecture "amd64";' in settings


def test_a_program_of_this_machine_is_taken_as_it_is() -> None:
    assert packages.program("sh", "dash")[0].endswith("/sh")
