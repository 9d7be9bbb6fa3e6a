"""Profiles: levels, and one clear line for each mistake."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from nemu.errors import ConfigError
from nemu.shrink import profile

GOOD = """
about = "a test"
kind = "command"
package = "busybox"
[build.one]
commands = ["make"]
products = ["busybox"]
[level.small]
about = "less"
[level.small.build.one]
commands = ["make small"]
"""


def parse(text: str, level: str = "") -> profile.Profile:
    return profile.parse(tomllib.loads(text), "test", "", level)


def test_a_level_changes_only_what_it_names() -> None:
    plain, small = parse(GOOD), parse(GOOD, "small")
    assert (plain.about, small.about) == ("a test", "less")
    assert plain.builds[0].commands == ("make",)
    assert small.builds[0].commands == ("make small",)
    assert small.builds[0].products == ("busybox",)


def test_devices_are_lost_and_gained_at_a_level() -> None:
    text = """
    kind = "qemu"
    [build.x]
    target = "x86_64-softmmu"
    devices = ["a", "b"]
    [level.other.build.x]
    lose = ["a"]
    gain = ["c"]
    """
    assert parse(text, "other").builds[0].devices == ("b", "c")
    with pytest.raises(ConfigError, match=r"build.x.lose z: is not among the devices"):
        parse(text.replace('lose = ["a"]', 'lose = ["z"]'), "other")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("package", "pakage", "pakage: no such setting; did you mean package?"),
        ("products", "product", "build.one: product: no such setting; did you mean products?"),
        ('"command"', '"comand"', "kind comand: must be qemu or command"),
        ('["make"]', "3", "build.one: commands 3: must be a list of texts"),
        (
            'products = ["busybox"]',
            "",
            "build.one.products: at least one file that the build makes is needed",
        ),
        ('["make"]', '["make"]\ntarget = "x"', "build.one.target: belongs to the kind qemu"),
        ('["make"]', '["make"]\ndirectory = "../x"', "build.one.directory ../x: must lie in the tree"),
        ("[build.one]", "[builds.one]", "build: at least one [build.NAME] table is needed"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new, 1))
    assert str(caught.value) == f"test: {text}"


def test_an_unknown_level_or_profile_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--level smal: unknown; did you mean small\?"):
        parse(GOOD, "smal")
    with pytest.raises(ConfigError, match=r"PROFILE qemu-vrt: no such profile; did you mean qemu-virt\?"):
        profile.load("qemu-vrt")
    with pytest.raises(ConfigError, match=r"PROFILE none.toml: no such file"):
        profile.load("none.toml")


@pytest.mark.parametrize("name", profile.shipped())
def test_shipped_profiles_load_at_every_level(name: str) -> None:
    about, levels = profile.describe(name)
    assert about
    for level in ("", *levels):
        loaded: Any = profile.load(name, level)
        assert loaded.builds
