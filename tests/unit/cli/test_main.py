"""The command as people meet it: help, one-line errors, exit statuses."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import nemu
from nemu.cli import main, parser, run
from nemu.errors import GuestError, HostError


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that ``nemu argv`` writes to standard error, ending with status 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nemu: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("nemu: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("", "a command is needed, one of run, doctor, guest, shrink, completion: see nemu --help"),
        ("rum", "command rum: unknown; did you mean run?"),
        ("run --memory 0", "--memory 0: must be 64M to 2048T, in whole MiB (a plain number is MiB)"),
        ("run --memory", "--memory: expected one argument (nemu run --help)"),
        ("run --memroy 1", "--memroy: no such option; did you mean --memory? (nemu run --help)"),
        ("run --mem 512", "--mem: no such option; did you mean --memory? (nemu run --help)"),
        ("run --cpus 256", "--cpus 256: must be a whole number from 1 to 255"),
        ("run kernel", "kernel: unexpected argument (nemu run --help)"),
        ("run --config none.toml", "--config none.toml: no such file or directory"),
        ("run --machine-json none", "--machine-json none: no such file or directory"),
        ("run --initrd x", "--kernel: is needed with --initrd"),
        ("--versoin", "--versoin: no such option; did you mean --version? (nemu --help)"),
        ("completion", "shell: is missing (nemu completion --help)"),
        ("completion fisk", "shell fisk: unknown; did you mean fish?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], argv: str, text: str) -> None:
    assert complaint(capsys, *argv.split()) == text


def test_control_characters_stay_out_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "run", "--rng", "a\nb\x1b[2J") == r"--rng a\nb\x1b[2J: must be on or off"


def test_bytes_that_are_no_text_do_not_hurt(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in complaint(capsys, "run", "--kernel", os.fsdecode(b"\xff\xfe"))


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in parser.COMMANDS)])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: {' '.join(['nemu', *argv[:-1]])}")
    assert captured.err == ""


def test_help_of_run_shows_every_setting_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    for word in ("--kernel", "--disk", "--host", "--config", "exit status", "examples:", "vm.toml"):
        assert word in text
    assert "machine-json" not in text


def test_the_list_of_commands_says_what_they_say() -> None:
    listed, full = (parser.build(names).format_help() for names in ([], list(parser.COMMANDS)))
    assert listed == full


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"nemu {nemu.__version__}\n"


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (HostError("cannot open /dev/kvm: x"), 1, "nemu: cannot open /dev/kvm: x\n"),
        (GuestError("odd"), 1, "nemu: odd\n"),
        (KeyboardInterrupt(), 130, ""),
        (KeyError("k"), 1, "nemu: internal error: KeyError: 'k' (NEMU_DEBUG=1 shows where)\n"),
    ],
)
def test_no_traceback_reaches_a_user(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    text: str,
) -> None:
    monkeypatch.delenv("NEMU_DEBUG", raising=False)
    monkeypatch.setattr(run, "run", raising(error))
    assert main(["run"]) == status
    assert capsys.readouterr().err == text


def test_nemu_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMU_DEBUG", "1")
    monkeypatch.setattr(run, "run", raising(KeyError("k")))
    with pytest.raises(KeyError):
        main(["run"])


def test_a_closed_pipe_is_no_error_message() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "nemu", "completion", "bash"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")
