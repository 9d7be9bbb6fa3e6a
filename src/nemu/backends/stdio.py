"""Standard input and output as a console: a terminal in raw mode, or pipes and files.

On a terminal every key goes to the guest, Ctrl-C as well, except the escape Ctrl-A:

    Ctrl-A X       leave: end the virtual machine at once
    Ctrl-A Ctrl-A  send a Ctrl-A
    Ctrl-A H       this help
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import termios
from collections.abc import Callable
from types import FrameType
from typing import Any

from nemu.backends.chardev import Chardev
from nemu.backends.output import Output
from nemu.errors import ConfigError
from nemu.interfaces import EventLoop

ESCAPE = 0x01  # Ctrl-A
TYPE_AHEAD = 4096  # bytes of typed input kept for a guest that does not read yet
HELP = (
    b"\r\nCtrl-A X       leave: end the virtual machine at once"
    b"\r\nCtrl-A Ctrl-A  send a Ctrl-A to the guest"
    b"\r\nCtrl-A H       this help\r\n"
)


def nonblocking(fd: int, flags: int) -> int:
    """A descriptor for the same file that never blocks.

    Where possible one with an open file description of its own: O_NONBLOCK on a shared one
    would also hit the shell, and whatever else writes to the same terminal or pipe.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        try:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass  # another user's terminal: share the description after all
    own = os.dup(fd)
    if not stat.S_ISREG(mode) and os.get_blocking(fd):
        os.set_blocking(fd, False)
        atexit.register(os.set_blocking, fd, True)
    return own


def raw_attributes(attributes: list[Any]) -> list[Any]:
    """cfmakeraw(3), but output processing stays on, so that messages of the host keep their line ends."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = attributes
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]


class RawTerminal:
    """The terminal ``fd`` in raw mode, until ``restore`` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved = termios.tcgetattr(fd)
        atexit.register(self.restore)
        termios.tcsetattr(fd, termios.TCSANOW, raw_attributes(self._saved))

    def restore(self) -> None:
        """Idempotent.  TCSANOW, because waiting for output to drain could wait forever (Ctrl-S)."""
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
        except termios.error:
            pass  # the terminal is gone: nothing to restore
        atexit.unregister(self.restore)


def is_our_terminal(fd: int) -> bool:
    """Whether ``fd`` is a terminal that this process may read and configure (job control: ``nemu &``)."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return os.isatty(fd)  # not our controlling terminal: no job control there


class EscapeFilter:
    """Takes the Ctrl-A commands out of typed input."""

    def __init__(self, leave: Callable[[], None], show_help: Callable[[], None]) -> None:
        self._commands = {ord("x"): leave, ord("X"): leave, ord("h"): show_help, ord("H"): show_help}
        self._escaped = False

    def feed(self, typed: bytes) -> bytes:
        """What of ``typed`` is for the guest: never more bytes than were typed."""
        if not self._escaped and ESCAPE not in typed:
            return typed
        passed = bytearray()
        for key in typed:
            if self._escaped:
                self._escaped = False
                if key == ESCAPE:
                    passed.append(key)
                elif command := self._commands.get(key):
                    command()
            elif key == ESCAPE:
                self._escaped = True
            else:
                passed.append(key)
        return bytes(passed)


class StdioChardev(Chardev):
    """Standard input and output.  ``leave`` is called (in the loop) on Ctrl-A X.

    On a terminal input is always read, so that Ctrl-A X works whatever the guest does; what
    the guest does not take is dropped behind TYPE_AHEAD bytes.  From a pipe or a file no more
    is read than the guest takes.
    """

    def __init__(
        self, loop: EventLoop, leave: Callable[[], None], option: str, *, stdin: int = 0, stdout: int = 1
    ) -> None:
        super().__init__()
        self._loop = loop
        self._stdin = stdin
        self._stdout = stdout
        self._typed = bytearray()
        self._terminal: RawTerminal | None = None
        self._old_winch: object = None
        self._input = -1  # -1: none, at its end, or belonging to another job
        try:
            os.fstat(stdin)
            self._output = Output(nonblocking(stdout, os.O_WRONLY), loop, self._writable)
        except OSError as error:
            raise ConfigError(option, "stdio", "standard input or output is closed") from error
        if is_our_terminal(stdin):
            self._terminal = RawTerminal(stdin)
            self._filter = EscapeFilter(leave, self._show_help)
            self._input = nonblocking(stdin, os.O_RDONLY)
            loop.add_reader(self._input, self._typed_ahead)
        elif not os.isatty(stdin):
            self._input = nonblocking(stdin, os.O_RDONLY)
        if os.isatty(stdout):
            self._old_winch = signal.signal(signal.SIGWINCH, self._winch)

    @property
    def size(self) -> tuple[int, int] | None:
        try:
            size = os.get_terminal_size(self._stdout)
        except OSError:
            return None
        return size.columns, size.lines

    def read(self, limit: int) -> bytes:
        if self._terminal:
            data = bytes(self._typed[:limit])
            del self._typed[:limit]
            return data
        if self._input < 0:
            return b""
        try:
            data = os.read(self._input, limit)
        except BlockingIOError:
            self._loop.add_reader(self._input, self._input_ready)
            return b""
        except OSError:
            data = b""
        if not data:
            self._end_input()
        return data

    def write(self, data: memoryview) -> int:
        return self._output.write(data)

    def close(self) -> None:
        super().close()
        self._end_input()
        if self._old_winch is not None:
            signal.signal(signal.SIGWINCH, self._old_winch)  # type: ignore[arg-type]
            self._old_winch = None
        self._output.close()
        if self._terminal:
            self._terminal.restore()
            self._terminal = None

    def _end_input(self) -> None:
        if self._input >= 0:
            self._loop.remove_reader(self._input)
            os.close(self._input)
            self._input = -1

    def _input_ready(self) -> None:
        self._loop.remove_reader(self._input)  # until the guest wants more than it gets now
        self._readable()

    def _typed_ahead(self) -> None:
        try:
            typed = os.read(self._input, TYPE_AHEAD)
        except BlockingIOError:
            return
        except OSError:
            typed = b""  # EIO: the terminal hung up
        if not typed:
            self._end_input()
            return
        self._typed += self._filter.feed(typed)[: TYPE_AHEAD - len(self._typed)]
        self._readable()

    def _show_help(self) -> None:
        self._output.write(memoryview(HELP))

    def _winch(self, _number: int, _frame: FrameType | None) -> None:
        self._loop.call_soon(self._changed)
