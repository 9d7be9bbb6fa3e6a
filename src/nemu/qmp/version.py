"""Whose protocol this is, and who speaks it."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import nemu


class Release(NamedTuple):
    major: Annotated[int, "major number"]
    minor: Annotated[int, "minor number"]
    micro: Annotated[int, "micro number"]


class VersionInfo(NamedTuple):
    qemu: Annotated[Release, "the release of QEMU whose protocol this follows"]
    package: Annotated[str, "who speaks it: nemu and its version"]


VERSION = VersionInfo(Release(10, 2, 0), f"nemu-{nemu.__version__}")
