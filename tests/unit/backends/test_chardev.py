"""Character backends on real files, pipes, sockets and pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.loop import FakeLoop
from nemu.backends.chardev import Chardev, open_chardev
from nemu.backends.output import BUFFER_SIZE
from nemu.backends.stdio import TYPE_AHEAD, StdioChardev
from nemu.config.chardev import ChardevConfig
from nemu.errors import ConfigError


class Guest:
    """A frontend that takes ``room`` bytes of input and counts what it is told."""

    def __init__(self, backend: Chardev, room: int = 1 << 30) -> None:
        self.backend = backend
        self.room = room
        self.seen = b""
        self.writable_calls = 0
        self.resizes: list[tuple[int, int] | None] = []
        backend.attach(self)
        self.readable()

    def readable(self) -> None:
        while self.room and (data := self.backend.read(min(self.room, 4096))):
            self.seen += data
            self.room -= len(data)

    def writable(self) -> None:
        self.writable_calls += 1

    def changed(self) -> None:
        self.resizes.append(self.backend.size)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


Open = Callable[[str, str], Chardev]


@pytest.fixture
def opened(loop: FakeLoop) -> Iterator[Open]:
    """Opens backends and closes them at the end."""
    made: list[Chardev] = []

    def open_one(kind: str, path: str) -> Chardev:
        made.append(open_chardev(ChardevConfig(kind, path), loop, leave=lambda: None))
        return made[-1]

    yield open_one
    for backend in made:
        backend.close()


def send(backend: Chardev, data: bytes) -> int:
    return backend.write(memoryview(data))


def test_null_takes_everything_and_gives_nothing(opened: Open) -> None:
    backend = opened("null", "")
    assert send(backend, b"x" * 1000) == 1000
    assert backend.read(100) == b""
    assert backend.size is None


def test_a_file_is_emptied_once_and_then_appended_to_over_reboots(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"of an earlier run")
    backend = opened("file", str(path))
    for boot in (b"first\n", b"second\n"):
        guest = Guest(backend)
        assert send(backend, boot) == len(boot)
        assert guest.seen == b""
        backend.detach()
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.parametrize("name", ["none/console.log", ""])
def test_a_file_that_cannot_be_made_is_refused(opened: Open, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--console file=.*: cannot open it for writing"):
        opened("file", str(tmp_path / name))


def test_a_fifo_that_nobody_reads_is_refused_and_does_not_hang(opened: Open, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="a FIFO without a reader"):
        opened("file", str(tmp_path / "fifo"))


def test_a_full_disk_does_not_stop_the_guest(opened: Open, loop: FakeLoop) -> None:
    backend = opened("file", "/dev/full")
    assert send(backend, b"x" * 100) == 100
    assert send(backend, b"x" * 100) == 100
    loop.settle()


def test_an_unknown_kind_is_refused(loop: FakeLoop) -> None:
    with pytest.raises(ConfigError, match="--serial vt100: must be stdio"):
        open_chardev(ChardevConfig("vt100"), loop, lambda: None, "--serial")


# --- pipes -------------------------------------------------------------------------------


class Pipes:
    """A stdio backend between two pipes of the test: ``typing`` into it, ``screen`` out of it."""

    def __init__(self, loop: FakeLoop) -> None:
        self.stdin, self.typing = os.pipe()
        self.screen, self.stdout = os.pipe()
        os.set_blocking(self.screen, False)
        self.backend = StdioChardev(loop, lambda: None, "--console", stdin=self.stdin, stdout=self.stdout)

    def close(self) -> None:
        self.backend.close()
        for fd in (self.stdin, self.typing, self.screen, self.stdout):
            try:
                os.close(fd)
            except OSError:
                continue


@pytest.fixture
def pipes(loop: FakeLoop) -> Iterator[Pipes]:
    made = Pipes(loop)
    yield made
    made.close()


def read_all(fd: int) -> bytes:
    data = b""
    try:
        while part := os.read(fd, 1 << 20):
            data += part
    except BlockingIOError:
        pass
    return data


def test_pipes_carry_bytes_both_ways_unchanged(pipes: Pipes, loop: FakeLoop) -> None:
    guest = Guest(pipes.backend)
    os.write(pipes.typing, b"\x01xls\r\x03")  # the escape is for terminals only
    loop.settle()
    assert guest.seen == b"\x01xls\r\x03"
    assert send(pipes.backend, b"out\r\n") == 5
    assert read_all(pipes.screen) == b"out\r\n"
    assert pipes.backend.size is None


def test_the_pipe_of_others_is_not_made_non_blocking(pipes: Pipes) -> None:
    assert os.get_blocking(pipes.stdin)
    assert os.get_blocking(pipes.stdout)


def test_input_that_the_guest_does_not_take_stays_in_the_pipe(pipes: Pipes, loop: FakeLoop) -> None:
    guest = Guest(pipes.backend, room=3)
    os.write(pipes.typing, b"abcdef")
    loop.settle()
    assert guest.seen == b"abc"
    assert loop.readers == {}, "a pipe that nobody takes from must not wake the loop"
    guest.room = 10
    guest.readable()
    assert guest.seen == b"abcdef"
    assert len(loop.readers) == 1


def test_the_end_of_input_is_quiet(pipes: Pipes, loop: FakeLoop) -> None:
    guest = Guest(pipes.backend)
    os.write(pipes.typing, b"last")
    os.close(pipes.typing)
    loop.settle()
    assert guest.seen == b"last"
    assert loop.readers == {}
    guest.readable()
    assert send(pipes.backend, b"still there") == 11


def test_a_slow_reader_fills_a_bounded_buffer_and_then_holds_the_guest(pipes: Pipes, loop: FakeLoop) -> None:
    guest = Guest(pipes.backend)
    data = os.urandom(1 << 20)
    taken = send(pipes.backend, data)
    assert BUFFER_SIZE <= taken < len(data)
    assert send(pipes.backend, data[taken:]) == 0
    shown = b""
    while taken < len(data):
        calls = guest.writable_calls
        while guest.writable_calls == calls:
            shown += os.read(pipes.screen, 4096)
            loop.turn()
        step = send(pipes.backend, data[taken:])
        assert step > 0, "writable was promised"
        taken += step
    while loop.writers:
        shown += read_all(pipes.screen)
        loop.turn()
    shown += read_all(pipes.screen)
    assert shown == data


def test_output_without_a_reader_is_dropped_and_the_guest_runs_on(pipes: Pipes, loop: FakeLoop) -> None:
    os.close(pipes.screen)
    assert send(pipes.backend, b"x" * 100_000) == 100_000
    assert send(pipes.backend, b"x" * 100_000) == 100_000
    loop.settle()
    assert loop.writers == {}


def test_a_reader_that_leaves_in_the_middle_frees_a_waiting_guest(pipes: Pipes, loop: FakeLoop) -> None:
    guest = Guest(pipes.backend)
    assert send(pipes.backend, bytes(1 << 20)) < 1 << 20
    os.close(pipes.screen)
    loop.settle()
    assert guest.writable_calls == 1
    assert send(pipes.backend, bytes(1 << 20)) == 1 << 20


def test_closing_delivers_what_a_slow_reader_is_about_to_take(pipes: Pipes, loop: FakeLoop) -> None:
    taken = send(pipes.backend, b"z" * (1 << 20))
    early = os.read(pipes.screen, BUFFER_SIZE)
    pipes.backend.close()
    assert len(early) + len(read_all(pipes.screen)) == taken
    assert loop.readers == loop.writers == {}


def test_input_from_a_file_and_from_dev_null_ends(loop: FakeLoop, tmp_path: Path) -> None:
    script = tmp_path / "commands"
    script.write_bytes(b"poweroff\n" * 1000)
    for path, expected in ((script, b"poweroff\n" * 1000), (os.devnull, b"")):
        with open(path, "rb") as stdin, open(tmp_path / "out", "wb") as stdout:
            backend = StdioChardev(
                loop, lambda: None, "--console", stdin=stdin.fileno(), stdout=stdout.fileno()
            )
            assert Guest(backend).seen == expected
            assert loop.readers == {}, "epoll refuses both"
            assert send(backend, b"to the file") == 11
            backend.close()
            assert (tmp_path / "out").read_bytes() == b"to the file"


def test_closed_standard_output_is_one_clear_error(loop: FakeLoop) -> None:
    with pytest.raises(ConfigError, match="--console stdio: standard input or output is closed"):
        StdioChardev(loop, lambda: None, "--console", stdin=0, stdout=9999)


# --- a terminal --------------------------------------------------------------------------


class Terminal:
    """A stdio backend on a pseudo-terminal whose keyboard and screen are ``keyboard``."""

    def __init__(self, loop: FakeLoop) -> None:
        self.keyboard, self.tty = pty.openpty()
        os.set_blocking(self.keyboard, False)
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
        self.cooked = termios.tcgetattr(self.tty)
        self.left: list[bool] = []
        self.backend = StdioChardev(
            loop, lambda: self.left.append(True), "--console", stdin=self.tty, stdout=self.tty
        )

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)


@pytest.fixture
def terminal(loop: FakeLoop) -> Iterator[Terminal]:
    handler = signal.getsignal(signal.SIGWINCH)
    made = Terminal(loop)
    yield made
    made.backend.close()
    os.close(made.keyboard)
    os.close(made.tty)
    assert signal.getsignal(signal.SIGWINCH) == handler


def test_every_key_goes_to_the_guest_without_echo(terminal: Terminal, loop: FakeLoop) -> None:
    guest = Guest(terminal.backend)
    terminal.type(b"ls\r\x03\x1a\x13\x11\x04\x7f")
    loop.settle()
    assert guest.seen == b"ls\r\x03\x1a\x13\x11\x04\x7f"
    assert read_all(terminal.keyboard) == b""


def test_the_terminal_is_as_before_after_closing(terminal: Terminal) -> None:
    assert termios.tcgetattr(terminal.tty) != terminal.cooked
    terminal.backend.close()
    assert termios.tcgetattr(terminal.tty) == terminal.cooked
    terminal.backend.close()


def test_the_terminal_is_restored_when_the_process_ends_by_an_exception(tmp_path: Path) -> None:
    program = tmp_path / "dies.py"
    program.write_text(
        "import sys\n"
        "from fakes.loop import FakeLoop\n"
        "from nemu.backends.stdio import StdioChardev\n"
        "StdioChardev(FakeLoop(), lambda: None, '--console')\n"
        "raise SystemExit(7)\n"
    )
    import subprocess
    import sys

    keyboard, tty = pty.openpty()
    cooked = termios.tcgetattr(tty)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run([sys.executable, program], stdin=tty, stdout=tty, env=environment, check=False)
    assert child.returncode == 7
    assert termios.tcgetattr(tty) == cooked
    os.close(keyboard)
    os.close(tty)


@pytest.mark.parametrize("key", [b"x", b"X"])
def test_the_escape_leaves(terminal: Terminal, loop: FakeLoop, key: bytes) -> None:
    guest = Guest(terminal.backend)
    terminal.type(b"a\x01")
    loop.settle()
    assert terminal.left == []
    terminal.type(key + b"b")
    loop.settle()
    assert terminal.left == [True]
    assert guest.seen == b"ab"


def test_the_escape_leaves_even_when_the_guest_takes_nothing(terminal: Terminal, loop: FakeLoop) -> None:
    Guest(terminal.backend, room=0)
    for _ in range(4):
        terminal.type(b"y" * (TYPE_AHEAD // 2))
        loop.settle()
    terminal.type(b"\x01x")
    loop.settle()
    assert terminal.left == [True]
    guest = Guest(terminal.backend)
    assert guest.seen == b"y" * TYPE_AHEAD, "and what was typed ahead is bounded"


def test_other_escapes(terminal: Terminal, loop: FakeLoop) -> None:
    guest = Guest(terminal.backend)
    terminal.type(b"\x01\x01|\x01q|\x01h|")
    loop.settle()
    assert guest.seen == b"\x01|||"
    assert terminal.left == []
    assert b"Ctrl-A X" in read_all(terminal.keyboard)


def test_keys_typed_between_two_machines_reach_the_next_one(terminal: Terminal, loop: FakeLoop) -> None:
    Guest(terminal.backend)
    terminal.backend.detach()
    terminal.type(b"root\r")
    loop.settle()
    assert Guest(terminal.backend).seen == b"root\r"


def test_a_resize_reaches_the_guest_through_the_loop(terminal: Terminal, loop: FakeLoop) -> None:
    guest = Guest(terminal.backend)
    assert terminal.backend.size == (80, 25)
    fcntl.ioctl(terminal.tty, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    signal.raise_signal(signal.SIGWINCH)
    assert guest.resizes == []
    loop.turn()
    assert guest.resizes == [(132, 50)]


def test_a_terminal_that_hangs_up_is_the_end_of_input(loop: FakeLoop) -> None:
    keyboard, tty = pty.openpty()
    out = os.open(os.devnull, os.O_WRONLY)
    backend = StdioChardev(loop, lambda: None, "--console", stdin=tty, stdout=out)
    guest = Guest(backend)
    os.write(keyboard, b"x")
    loop.settle()
    os.close(keyboard)
    loop.settle()
    assert guest.seen == b"x"
    assert loop.readers == {}
    backend.close()
    os.close(tty)
    os.close(out)


# --- a socket ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "console.sock")


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(path)
    return client


def test_a_client_sees_output_and_types_input(opened: Open, loop: FakeLoop, path: str) -> None:
    backend = opened("socket", path)
    guest = Guest(backend)
    assert send(backend, b"unheard") == 7
    with connect(path) as client:
        loop.settle()
        assert send(backend, b"heard") == 5
        assert client.recv(100) == b"heard"
        client.send(b"typed")
        loop.settle()
        assert guest.seen == b"typed"


def test_the_next_client_waits_until_the_first_has_left(opened: Open, loop: FakeLoop, path: str) -> None:
    backend = opened("socket", path)
    guest = Guest(backend)
    first, second = connect(path), connect(path)
    first.send(b"1")
    second.send(b"2")
    loop.settle()
    assert guest.seen == b"1"
    first.close()
    loop.settle()
    assert guest.seen == b"12"
    send(backend, b"hello")
    assert second.recv(100) == b"hello"
    second.close()
    loop.settle()
    assert send(backend, b"nobody") == 6


def test_a_client_that_left_is_noticed_by_output_and_the_next_one_stays(
    opened: Open, loop: FakeLoop, path: str
) -> None:
    backend = opened("socket", path)
    Guest(backend, room=0)
    first = connect(path)
    loop.settle()
    first.close()
    send(backend, b"into the void")
    second = connect(path)
    loop.settle()
    send(backend, b"welcome")
    loop.settle()
    assert second.recv(100) == b"welcome"
    second.close()


def test_a_client_that_does_not_read_holds_the_guest_until_it_leaves(
    opened: Open, loop: FakeLoop, path: str
) -> None:
    backend = opened("socket", path)
    guest = Guest(backend)
    client = connect(path)
    loop.settle()
    assert send(backend, bytes(1 << 22)) < 1 << 22
    client.close()
    loop.settle()
    assert guest.writable_calls >= 1
    assert send(backend, bytes(1 << 22)) == 1 << 22


def test_a_stale_socket_is_replaced_and_removed_at_the_end(opened: Open, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    backend = opened("socket", path)
    connect(path).close()
    backend.close()
    assert not os.path.exists(path)
    backend.close()


def test_a_socket_in_use_is_refused_and_left_alone(opened: Open, path: str) -> None:
    backend = opened("socket", path)
    with pytest.raises(ConfigError, match="is in use by another program"):
        opened("socket", path)
    connect(path).close()
    backend.close()


def test_a_file_in_the_place_of_the_socket_is_refused_and_kept(opened: Open, path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        opened("socket", path)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("bad", ["/nonexistent/console.sock", "/tmp/" + "x" * 200, ""])
def test_a_path_that_cannot_be_a_socket_is_refused(opened: Open, bad: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        opened("socket", bad)


def test_a_socket_that_took_our_name_is_not_removed(opened: Open, path: str) -> None:
    backend = opened("socket", path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        backend.close()
        assert os.path.exists(path)
