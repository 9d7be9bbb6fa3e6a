"""Any C project that is built by shell commands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from nemu.shrink.kinds import Offer, Place, Step
from nemu.shrink.profile import Build, Profile

PACKAGES = ("cloc", "gcc", "libc6-dev", "make", "patch", "strace")


class Command:
    """The kind ``command``: ``{jobs}`` in a command is the number of jobs."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def packages(self) -> list[str]:
        return sorted({*PACKAGES, *self.profile.packages})

    def validate(self, tree: str) -> None:
        """The commands themselves are the test."""

    def prepare(self, tree: str) -> None:
        """Nothing is added to the source."""

    def added(self) -> list[str]:
        return []

    def place(self, build: Build, tree: str, jobs: int) -> Place:
        directory = os.path.normpath(os.path.join(tree, build.directory))
        return Place(tree, directory, dict(build.environment), jobs)

    def steps(self, build: Build, place: Place) -> Iterator[Step]:
        for line in build.commands:
            yield Step(line.split()[0], ("/bin/sh", "-ec", line.replace("{jobs}", str(place.jobs))))

    def checks(self, build: Build, place: Place) -> Iterator[Step]:
        for line in build.tests:
            yield Step(f"test {line.split()[0]}", ("/bin/sh", "-ec", line))

    def products(self, build: Build) -> tuple[str, ...]:
        return build.products

    def known(self, build: Build, place: Place, names: set[str]) -> tuple[set[str], set[str]]:
        return set(), set()

    def fingerprint(self, build: Build, place: Place) -> list[str]:
        return []

    def settings(self, build: Build, place: Place) -> list[str]:
        return []

    def offer(self, build: Build, product: str, place: Place) -> Offer:
        return Offer()

    def runner(self, build: Build, place: Place) -> Sequence[str]:
        return []
