"""``nemu completion``: a shell's completion script, made from the parser itself."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_DESCRIPTION = """\
Print a completion script for a shell.

  bash    nemu completion bash > ~/.local/share/bash-completion/completions/nemu
  zsh     nemu completion zsh > ~/.zfunc/_nemu     (a folder of your fpath)
  fish    nemu completion fish > ~/.config/fish/completions/nemu.fish"""


class Word(NamedTuple):
    """A subcommand or an option of one command."""

    name: str
    help: str


class Command(NamedTuple):
    """One command line so far: what may follow it."""

    path: str  # "" or "run" or "guest build"
    words: list[Word]  # subcommands, options and words of positional arguments
    values: dict[str, list[str]]  # option -> words that may follow it
    files: list[str]  # options that a path may follow


def register(subparsers: Any, name: str) -> None:
    """Add ``completion`` to the commands."""
    parser = subparsers.add_parser(
        name, help="print a completion script for a shell", description=_DESCRIPTION
    )
    parser.add_argument("shell", choices=list(_SCRIPTS), help="the shell: %(choices)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script of ``arguments.shell``."""
    from nemu.cli.parser import COMMANDS, build

    sys.stdout.write(_SCRIPTS[arguments.shell](list(commands(build(list(COMMANDS))))))
    return 0


def commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Command]:
    """``parser`` and every subcommand below it."""
    command = Command(path, [], {}, [])
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                command.words.append(Word(name, about.get(name, "")))
                yield from commands(child, f"{path} {name}".strip())
        else:
            _add(command, action)
    yield command


def _add(command: Command, action: argparse.Action) -> None:
    names = list(action.option_strings)
    help_text = (action.help or "").replace("%%", "%").partition("; ")[0].partition(" (default")[0]
    command.words.extend(Word(name, help_text) for name in names)
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    words = [str(word) for word in action.choices or ()] or _words(metavar)
    if not names:
        command.words.extend(Word(word, "") for word in words)
    elif action.nargs != 0:
        command.values.update(dict.fromkeys(names, words))
        if metavar.startswith(("PATH", "FILE", "DIR")) or "=PATH" in metavar:
            command.files.extend(names)


def _words(metavar: str) -> list[str]:
    """``["off", "file="]`` of the metavar ``PATH|off|file=PATH``."""
    forms = metavar.partition("[")[0].split("|")
    words = [form[: form.index("=") + 1] if "=" in form else form for form in forms if not form.isupper()]
    return words if len(forms) > 1 else []


_BASH = """\
# bash completion for nemu, made by "nemu completion bash"
_nemu() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command="" word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command/$word" in
            {known}) command="${{command:+$command }}$word" ;;
        esac
    done
    COMPREPLY=()
    if [[ $current == "=" || $previous == "=" ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "${{current#=}}")
        return
    fi
    case "$command/$previous" in
{values}
    esac
    case "$command" in
{words}
    esac
}}
complete -F _nemu nemu
"""


def _bash(every: list[Command]) -> str:
    values = []
    for command in every:
        for option, words in command.values.items():
            line = f'mapfile -t COMPREPLY < <(compgen -W {shlex.quote(" ".join(words))} -- "$current")'
            if any(word.endswith("=") for word in words):
                line += "; compopt -o nospace"
            elif option in command.files:
                line = 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current")'
            values.append(f"        {_case(command, option)}) {line}; return ;;")
    lines = [
        f"        {shlex.quote(command.path)}) mapfile -t COMPREPLY < <(compgen -W "
        f'{shlex.quote(" ".join(word.name for word in command.words))} -- "$current") ;;'
        for command in every
    ]
    return _BASH.format(known=_known(every), values="\n".join(values), words="\n".join(lines))


_ZSH = """\
#compdef nemu
# zsh completion for nemu, made by "nemu completion zsh"
_nemu() {{
    local current=$words[CURRENT] previous=$words[CURRENT-1] command="" word
    local -a found
    for word in ${{words[2,CURRENT-1]}}; do
        case "$command/$word" in
            {known}) command="${{command:+$command }}$word" ;;
        esac
    done
    if [[ $current == (file|socket)=* ]]; then
        compset -P '*='
        _files
        return
    fi
    case "$command/$previous" in
{values}
    esac
    case "$command" in
{words}
    esac
    _describe -o nemu found
}}
if [[ $funcstack[1] == _nemu ]]; then
    _nemu "$@"
else
    compdef _nemu nemu
fi
"""


def _zsh(every: list[Command]) -> str:
    values, lines = [], []
    for command in every:
        for option, words in command.values.items():
            plain = shlex.join(word for word in words if not word.endswith("="))
            open_ended = shlex.join(word for word in words if word.endswith("="))
            steps = [f"compadd -- {plain}"] if plain else []
            steps += [f"compadd -S '' -- {open_ended}"] if open_ended else []
            steps += ["_files"] if option in command.files and not words else []
            values.append(f"        {_case(command, option)}) {'; '.join([*steps, 'return'])} ;;")
        described = shlex.join(
            word.name.replace(":", r"\:") + (f":{word.help}" if word.help else "") for word in command.words
        )
        lines.append(f"        {shlex.quote(command.path)}) found=({described}) ;;")
    return _ZSH.format(known=_known(every), values="\n".join(values), words="\n".join(lines))


def _fish(every: list[Command]) -> str:
    lines = ['# fish completion for nemu, made by "nemu completion fish"', "complete -c nemu -f"]
    paths = {command.path for command in every}
    for command in every:
        below = [word.name for word in command.words if f"{command.path} {word.name}".strip() in paths]
        where = "; and ".join(f"__fish_seen_subcommand_from {part}" for part in command.path.split())
        if below:
            where = "; and ".join(filter(None, [where, f"not __fish_seen_subcommand_from {' '.join(below)}"]))
        for word in command.words:
            flag = _fish_flag(word.name)
            if word.name in command.values:
                flag += " -r -F" if word.name in command.files else " -x"
                words = " ".join(command.values[word.name])
                flag += f" -a {shlex.quote(words)}" if words else ""
            about = f" -d {shlex.quote(word.help)}" if word.help else ""
            lines.append(f"complete -c nemu -n {shlex.quote(where)} {flag}{about}")
    return "\n".join(lines) + "\n"


def _fish_flag(name: str) -> str:
    if name.startswith("--"):
        return f"-l {name[2:]}"
    return f"-s {name[1:]}" if name.startswith("-") else f"-a {name}"


def _known(every: list[Command]) -> str:
    """A shell pattern of ``COMMAND SO FAR/NEXT WORD`` for each subcommand."""
    split = (command.path.rpartition(" ") for command in every if command.path)
    return " | ".join(shlex.quote(f"{before}/{last}") for before, _, last in split)


def _case(command: Command, option: str) -> str:
    return shlex.quote(f"{command.path}/{option}")


_SCRIPTS: dict[str, Callable[[list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
