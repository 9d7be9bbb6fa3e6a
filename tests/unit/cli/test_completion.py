"""Completion scripts: they know what the parser knows, and bash accepts them."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from nemu.cli import completion, main, parser

SHELLS = ["bash", "zsh", "fish"]


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_of_every_command_is_offered(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    text = script(capsys, shell)
    every = list(completion.commands(parser.build(list(parser.COMMANDS))))
    assert {"", "guest build", "shrink run", "shrink profiles", *parser.COMMANDS} == {
        one.path for one in every
    }
    for command in every:
        for word in command.words:
            assert word.name.lstrip("-") in text


@pytest.mark.parametrize("shell", SHELLS)
def test_hidden_options_stay_hidden(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert "machine-json" not in script(capsys, shell)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nemu ", {*parser.COMMANDS, "--help", "--version", "-h"}),
        ("nemu p", {"ps", "pause", "plug", "powerdown"}),
        ("nemu run --qmp ", {"fd=", "tcp=", "off"}),
        ("nemu stop --", {"--timeout", "--help"}),
        ("nemu ru", {"run"}),
        ("nemu guest ", {"build", "-h", "--help"}),
        ("nemu run --con", {"--console", "--config"}),
        ("nemu run --irqchip ", {"split", "kernel"}),
        ("nemu run --cpus 2 --host e", {"emulated"}),
        ("nemu run --console f", {"file="}),
        ("nemu run --kernel vml", {"vmlinuz", "vmlinux"}),
        ("nemu run --console file=vmlinu", {"vmlinuz", "vmlinux"}),
        ("nemu run --append ", set()),
        ("nemu completion f", {"fish"}),
    ],
)
def test_bash_completes(
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    line: str,
    expected: set[str],
) -> None:
    folder = tmp_path_factory.mktemp("files")
    for name in ("vmlinuz", "vmlinux", "other"):
        (folder / name).touch()
    # Bash breaks words at "=" as well.
    words = [part for word in line.split(" ") for part in word.replace("=", " = ").split(" ")]
    program = f"{script(capsys, 'bash')}\ncompopt() {{ :; }}\n"
    program += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _nemu\n"
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected
