"""How the builds of a profile are made: what each kind of project has to tell the shrinker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nemu.shrink.profile import Build, Profile


@dataclass(frozen=True)
class Step:
    """One command of a build.

    ``configures``: it only prepares what a later step compiles.  ``known``: the build system can tell what
    this step reads (compilers write it down), so that it needs no trace, which costs more than compiling.
    """

    what: str
    argv: tuple[str, ...]
    configures: bool = False
    known: bool = False


@dataclass(frozen=True)
class Place:
    """Where a build happens: the source tree, and the directory its steps run in."""

    tree: str
    directory: str
    environment: dict[str, str] = field(default_factory=dict)
    jobs: int = 2


@dataclass
class Offer:
    """What a product says at run time that it offers."""

    machines: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    cpus: list[str] = field(default_factory=list)


class Kind(Protocol):
    """A kind of project.  ``tree`` arguments are absolute paths; names are relative to the tree."""

    profile: Profile

    def packages(self) -> list[str]:
        """Distribution packages that building and checking need."""

    def validate(self, tree: str) -> None:
        """Raise ConfigError when the profile asks for what this source does not have."""

    def prepare(self, tree: str) -> None:
        """Write the files that the profile adds to the source."""

    def added(self) -> list[str]:
        """The names of those files."""

    def place(self, build: Build, tree: str, jobs: int) -> Place:
        """Where ``build`` happens when ``tree`` is its source."""

    def steps(self, build: Build, place: Place) -> Iterator[Step]:
        """The commands of ``build``, in order; each is run before the next one is asked for."""

    def checks(self, build: Build, place: Place) -> Iterator[Step]:
        """Commands that show that a finished build works."""

    def products(self, build: Build) -> tuple[str, ...]:
        """The files that ``build`` makes, relative to its directory."""

    def known(self, build: Build, place: Place, names: set[str]) -> tuple[set[str], set[str]]:
        """What of ``names`` the build system itself says that it reads to build, and to configure."""

    def fingerprint(self, build: Build, place: Place) -> list[str]:
        """What a configured build would do, to compare; nothing when the build system cannot tell."""

    def settings(self, build: Build, place: Place) -> list[str]:
        """Names of the options that the configured build has switched on."""

    def offer(self, build: Build, product: str, place: Place) -> Offer:
        """Ask the product at run time."""

    def runner(self, build: Build, place: Place) -> Sequence[str]:
        """What has to come before a product on a command line to run it here."""
