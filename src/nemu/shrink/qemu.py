"""QEMU: configure, device lists in ``configs/devices``, Kconfig, Meson and ninja."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from nemu import syntax
from nemu.errors import ConfigError
from nemu.shrink import kconfig, ninja, process, sources
from nemu.shrink.kinds import Offer, Place, Step
from nemu.shrink.profile import Build, Profile

PACKAGES = (
    "bzip2", "cloc", "dpkg-dev", "gcc", "git", "libc6-dev", "libfdt-dev", "libglib2.0-dev", "libpixman-1-dev",
    "make", "meson", "ninja-build", "patch", "pkg-config", "python3", "strace",
)  # fmt: skip
_CROSS_PACKAGES = {"arm64": ("gcc-aarch64-linux-gnu", "qemu-user")}
_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_DEVICE = re.compile(r'^name "([^"]+)"', re.MULTILINE)


class Qemu:
    """The kind ``qemu``."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def packages(self) -> list[str]:
        cross = [
            name for build in self.profile.builds for name in _CROSS_PACKAGES.get(build.architecture, ())
        ]
        return sorted({*PACKAGES, *self.profile.packages, *cross})

    def validate(self, tree: str) -> None:
        if not os.path.exists(os.path.join(tree, "configs/devices")):
            raise ConfigError("--source", tree, "is not QEMU 5 or later: it has no configs/devices")
        symbols = kconfig.symbols(tree)
        for build in self.profile.builds:
            where = f"{self.profile.name}: build.{build.name}"
            if not os.path.exists(os.path.join(tree, "configs/targets", f"{build.target}.mak")):
                targets = [name.removesuffix(".mak") for name in os.listdir(f"{tree}/configs/targets")]
                raise ConfigError(
                    f"{where}.target", build.target, f"unknown{syntax.nearest(build.target, targets)}"
                )
            for name in build.config:
                if name not in symbols:
                    close = syntax.nearest(name, sorted(symbols))
                    raise ConfigError(f"{where}.config.{name}", "", f"this source has no such symbol{close}")

    def prepare(self, tree: str) -> None:
        for build, name in zip(self.profile.builds, self.added(), strict=True):
            lines = [f"CONFIG_{key}={'y' if on else 'n'}\n" for key, on in sorted(build.config.items())]
            with open(os.path.join(tree, name), "w", encoding="ascii") as file:
                file.write(f"# {self.profile.name}: all that this configuration needs\n")
                file.writelines(lines)

    def added(self) -> list[str]:
        return [f"configs/devices/{build.target}/{self._devices}.mak" for build in self.profile.builds]

    @property
    def _devices(self) -> str:
        return f"nemu-{self.profile.level}" if self.profile.level else "nemu"

    def place(self, build: Build, tree: str, jobs: int) -> Place:
        # Beside the tree, so that nothing of the build is mistaken for source.
        directory = os.path.join(os.path.dirname(tree), f"build-{build.name}")
        environment = dict(build.environment)
        if build.architecture != "amd64":
            root = sources.sysroot(build.libraries, build.architecture)
            library = f"{root}/usr/lib/{_TRIPLETS[build.architecture]}"
            environment |= {
                "PKG_CONFIG": "pkg-config",
                "PKG_CONFIG_SYSROOT_DIR": root,
                "PKG_CONFIG_LIBDIR": f"{library}/pkgconfig:{root}/usr/share/pkgconfig",
                "NEMU_SYSROOT": root,
            }
        return Place(tree, directory, environment, jobs)

    def steps(self, build: Build, place: Place) -> Iterator[Step]:
        architecture = build.target.partition("-")[0]
        words = ["../" + os.path.basename(place.tree) + "/configure", f"--target-list={build.target}"]
        words += [f"--with-devices-{architecture}={self._devices}"]
        root = place.environment.get("NEMU_SYSROOT")
        flags = [f"--sysroot={root}"] if root else []
        if root:
            words += [f"--cross-prefix={_TRIPLETS[build.architecture]}-"]
        # A section for each function, so that the linker can tell which ones nobody calls.
        words += [f"--extra-cflags={' '.join([*flags, '-ffunction-sections', '-fdata-sections'])}"]
        words += [f"--extra-ldflags={' '.join([*flags, '-Wl,--gc-sections'])}"]
        words += [*self.profile.configure, *build.configure]
        yield Step("configure", tuple(words), configures=True)
        goals = self.products(build)
        ninja_words = ("ninja", f"-j{place.jobs}")
        yield Step("generate", (*ninja_words, *ninja.generated(place.directory, goals)))
        yield Step("compile", (*ninja_words, *goals), known=True)

    def checks(self, build: Build, place: Place) -> Iterator[Step]:
        yield from ()  # its offer and its boots show more

    def products(self, build: Build) -> tuple[str, ...]:
        return (f"qemu-system-{build.target.partition('-')[0]}",)

    def known(self, build: Build, place: Place, names: set[str]) -> tuple[set[str], set[str]]:
        read = ninja.inputs(place.directory, self.products(build), place.tree, names)
        return read, ninja.descriptions(place.directory, place.tree, names)

    def fingerprint(self, build: Build, place: Place) -> list[str]:
        return ninja.compiles(place.directory, self.products(build), place.tree)

    def settings(self, build: Build, place: Place) -> list[str]:
        stem = os.path.join(place.directory, build.target)
        with open(f"{stem}-config-devices.mak", encoding="ascii") as file:
            names = re.findall(r"^CONFIG_(\w+)=y$", file.read(), re.MULTILINE)
        # The accelerators and the architecture are handed to Kconfig on its command line.
        with open(f"{stem}-config-target.h", encoding="ascii") as file:
            names += re.findall(r"^#define (?:CONFIG|TARGET)_(\w+) 1?$", file.read(), re.MULTILINE)
        return sorted({*names})

    def runner(self, build: Build, place: Place) -> Sequence[str]:
        root = place.environment.get("NEMU_SYSROOT")
        return [shutil.which("qemu-aarch64") or "qemu-aarch64-static", "-L", root] if root else []

    def offer(self, build: Build, product: str, place: Place) -> Offer:
        return offered([*self.runner(build, place), product])


def offered(ask: Sequence[str], environment: Mapping[str, str] | None = None) -> Offer:
    """What the QEMU that the words ``ask`` start says it has; CPU models are devices there."""
    machines = process.output([*ask, "-machine", "help"], environment=environment).splitlines()[1:]
    devices = _DEVICE.findall(process.output([*ask, "-device", "help"], environment=environment))
    return Offer(
        machines=sorted(line.split()[0] for line in machines if line.strip()),
        devices=sorted(name for name in devices if not name.endswith("-cpu")),
        cpus=sorted(name for name in devices if name.endswith("-cpu")),
    )
