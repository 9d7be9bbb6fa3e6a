"""Distribution packages that building and checking need: named when missing, or installed on request."""

from __future__ import annotations

import os
import shutil
import subprocess

from nemu.errors import HostError
from nemu.shrink import process


def missing(names: list[str]) -> list[str]:
    """Which of ``names`` are not installed; none where there is no dpkg to ask."""
    if shutil.which("dpkg-query") is None:
        return []
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    there = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return sorted(set(names) - there)


def require(names: list[str], *, install: bool, log: str) -> None:
    """Raise HostError when some of ``names`` are missing and may not be, or cannot be, installed."""
    lacking = missing(names)
    if not lacking:
        return
    if not install:
        raise HostError(
            f"build dependencies are missing: apt-get install {' '.join(lacking)} (or --install-deps)"
        )
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    process.run(
        [*sudo, "apt-get", "update", "-q=2"], what="apt-get update", cwd="/", log=log, environment=environment
    )
    process.run(
        [*sudo, "apt-get", "install", "-q=2", "--yes", "--no-install-recommends", *lacking],
        what="apt-get install",
        cwd="/",
        log=log,
        environment=environment,
    )
    if lacking := missing(names):
        raise HostError(f"apt-get did not install {' '.join(lacking)}")
