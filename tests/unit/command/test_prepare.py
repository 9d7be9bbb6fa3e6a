"""The machine of a command, out of the settings and of where nemu is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemu.backends import stdio
from nemu.command.prepare import ROOT_TAG, prepare
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.fs import FsConfig
from nemu.errors import ConfigError
from nemu.host.guest import Guest

GUEST = Guest("small-kernel", "small-initrd", "quiet")


def prepared(**values: object) -> MachineConfig:
    return prepare(MachineConfig(**{"command": ("true",), **values}), GUEST)  # type: ignore[arg-type]


def test_the_root_is_shared_read_only_unless_it_shall_be_written() -> None:
    assert prepared().filesystems == (FsConfig(ROOT_TAG, dir="/", readonly=True),)
    mine = FsConfig("mine", dir="/srv")
    config = prepared(rw=True, root="/", filesystems=(mine,))
    assert config.filesystems == (mine, FsConfig(ROOT_TAG, dir="/"))


def test_a_kernel_of_the_users_gets_the_init_too() -> None:
    config = prepared(kernel="mine", append="loglevel=7")
    assert (config.kernel, config.initrd) == ("mine", "small-initrd")
    assert config.append == "quiet rdinit=/command loglevel=7"
    assert prepared().kernel == "small-kernel"


def test_the_directory_is_the_current_one_as_the_root_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / "a/b")
    assert prepared().directory == str((tmp_path / "a/b").resolve())
    assert prepared(root=str(tmp_path / "link")).directory == "/b"
    assert prepared(root=".").directory == "/"
    assert prepared(root="/etc").directory == "/"
    assert prepared(directory="/srv").directory == "/srv"


def test_the_environment_is_a_clean_one_and_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in ("HOME", "LC_ALL", "SECRET", "WANTED"):
        monkeypatch.setenv(name, f"my {name}")
    env = prepared(env=("WANTED", "NEW=a=b", "HOME=/other", "NEW=c")).env
    assert [one for one in env if not one.startswith("PATH=")] == [
        "HOME=/other",
        "LC_ALL=my LC_ALL",
        "WANTED=my WANTED",
        "NEW=c",
    ]
    assert "/usr/bin" in next(one for one in env if one.startswith("PATH="))
    with pytest.raises(ConfigError, match="--env MISSING: is not set here; give it as NAME=VALUE"):
        prepared(env=("MISSING",))


@pytest.mark.parametrize(("tty", "console"), [(True, "stdio"), (False, "null")])
def test_the_console_is_the_commands_terminal_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tty: bool, console: str
) -> None:
    monkeypatch.setattr(stdio, "is_our_terminal", lambda fd: tty)
    monkeypatch.setattr(os, "isatty", lambda fd: tty)
    assert prepared().console == ChardevConfig(console)
    log = ChardevConfig("file", "log")
    assert prepared(console=log).console == log


def test_what_the_command_has_itself_cannot_be_given() -> None:
    with pytest.raises(ConfigError, match="--initrd i: a command has"):
        prepared(initrd="i")
    with pytest.raises(ConfigError, match=f"tag={ROOT_TAG}: is the command's root"):
        prepared(filesystems=(FsConfig(ROOT_TAG, dir="/"),))
