"""``nemu run -- COMMAND``: streams, words, terminal, signals, and what becomes of the host's files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from functional.inside import Nemu
from functional.rig import INITRD, KERNEL, Rig
from nemu.command.prepare import prepare
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.host.guest import Guest

PLACE = "/srv/it's here"
BINARY = bytes(range(256)) * 1000
MACHINE = "/tmp/machine.json"


@pytest.fixture(scope="module")
def host() -> Iterator[Rig]:
    with Rig(packages=("qemu-system-common",)) as rig:
        rig.run(["mkdir", "-p", PLACE])
        rig.put(b"the host's\n", f"{PLACE}/file")
        yield rig


def arguments(host: Rig, *words: str, console: str = "null", **settings: Any) -> list[str]:
    """The words after ``nemu`` that run the command; its machine is settled here, where the cache is."""
    config = MachineConfig(command=words, directory=PLACE, env=("GIVEN=a  b'c",), **settings)
    config = prepare(config, Guest(KERNEL, INITRD, host.append))
    config = replace(config, console=ChardevConfig(console))
    host.put(config.to_json().encode(), MACHINE)
    return ["run", "--host", "native", "--machine-json", MACHINE, "--timeout", "100"]


# Prints what the command sees of itself; then copies its input.
_SCRIPT = r"""
printf '<%s>' "$0" "$@" "$PWD" "$GIVEN"; echo
cat file
echo changed >file; cat file; echo new >new; mkdir -p /usr/new && echo made
test -t 0 || test -t 1 || test -t 2 || echo no terminal
(echo by a path >/dev/stderr) 2>&1 >/dev/null | cat >&2
sleep 1000 &
grep -q '^tmpfs /dev/shm ' /proc/mounts && test -e /sys/kernel && echo mounted
cat
exit 42
"""


def test_a_command_has_its_words_streams_directory_and_status_and_leaves_nothing(host: Rig) -> None:
    words = ("sh", "-c", _SCRIPT, "name", "two words", 'it\'s "quoted"', "$HOME", "a\nb", "")
    done = host.run_nemu(arguments(host, *words), stdin=BINARY)
    assert done.status == 42, done
    text, _, copied = done.stdout.partition(b"mounted\n")
    assert text.decode() == (
        f"<name><two words><it's \"quoted\"><$HOME><a\nb><><{PLACE}><a  b'c>\n"
        "the host's\nchanged\nmade\nno terminal\n"
    )
    assert copied == BINARY
    assert done.stderr == b"by a path\n"
    assert host.get(f"{PLACE}/file") == b"the host's\n"
    assert host.run(["ls", PLACE]).stdout == b"file\n"
    assert host.run(["test", "-e", "/usr/new"]).status == 1


def talk(argv: list[str]) -> dict[str, Any]:
    """Runs inside: an interactive shell on a terminal of 40 x 132, step by step."""
    with Nemu(argv, size=(40, 132)) as nemu:
        nemu.expect("# ")
        nemu.type("stty size; tty\n")
        size = nemu.expect(r"\d+ \d+\s+/dev/\w+")
        nemu.resize(30, 100)
        nemu.type("sleep 1; stty size\n")
        resized = nemu.expect(r"\n30 100")
        nemu.type("echo g''o; sleep 1000\n")
        nemu.expect("go")  # the shell's line editor has left the terminal
        nemu.type("\x03")
        nemu.expect("# ")
        nemu.type("(echo o''n; sleep 1000)\n")
        nemu.expect("on")
        nemu.type("\x1a")
        nemu.expect("# ")
        nemu.type("jobs; echo err >&2; kill -KILL $$\n")
        nemu.expect("Stopped")
        return {"size": size, "resized": resized, "status": nemu.wait(), "stderr": nemu.stderr()}


def test_on_a_terminal_a_shell_has_job_control_and_the_size(host: Rig) -> None:
    seen = host.call_here(talk, argv=arguments(host, "sh", "-i", console="stdio"), timeout=300)
    assert "40 132" in seen["size"]
    assert "/dev/hvc0" in seen["size"]
    assert seen["status"] == 128 + signal.SIGKILL
    assert seen["stderr"].endswith("err\n"), "standard error is no terminal here, and apart"


def send_signals(argv: list[str]) -> dict[str, Any]:
    """Runs inside: SIGINT, which the command takes, then SIGTERM, which ends it."""
    with Nemu(argv) as nemu:
        nemu.expect("ready")
        nemu.signal(signal.SIGINT)
        nemu.expect("got INT")
        nemu.signal(signal.SIGTERM)
        return {"status": nemu.wait(), "stderr": nemu.stderr()}


def test_signals_reach_the_command_and_rw_reaches_the_host(host: Rig) -> None:
    script = "trap 'echo written >file; echo got INT' INT; echo ready; while :; do sleep 0.1; done"
    argv = arguments(host, "sh", "-c", script, rw=True)
    seen = host.call_here(send_signals, argv=argv, timeout=300)
    assert seen == {"status": 128 + signal.SIGTERM, "stderr": ""}
    assert host.get(f"{PLACE}/file") == b"written\n"


def read_one_line(argv: list[str]) -> dict[str, Any]:
    """Runs inside: a reader that leaves while the command still writes."""
    command = ["/usr/bin/python3.11", "-m", "nemu", *argv]
    environment = {**os.environ, "PYTHONPATH": "/nemu/src"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as nemu:
        assert nemu.stdout
        line = nemu.stdout.readline()
        nemu.stdout.close()
        return {"line": line.decode(), "status": nemu.wait(60)}


def test_a_writer_whose_reader_has_left_gets_a_broken_pipe(host: Rig) -> None:
    seen = host.call_here(read_one_line, argv=arguments(host, "yes"))
    assert seen == {"line": "y\n", "status": 128 + signal.SIGPIPE}


def test_what_the_kernel_lacks_is_said_in_one_line(host: Rig) -> None:
    done = host.run_nemu(arguments(host, "true", append="module_blacklist=virtiofs"))
    assert done == (1, b"", b"nemu: this kernel has no virtiofs: CONFIG_VIRTIO_FS\n")


def test_a_program_that_is_not_there_has_the_status_of_a_shell(host: Rig) -> None:
    done = host.run_nemu(arguments(host, "no-such-program"))
    assert done.status == 127
    assert b"no-such-program" in done.stderr
