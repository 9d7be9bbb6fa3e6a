"""Programs that a stage runs: their output goes to a log, and they never outlive the stage."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from nemu.errors import HostError

_NINJA_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_TAIL = 64 << 10  # bytes of a log that are looked at for the reason of a failure


class CommandError(HostError):
    """A command of the project failed.  ``text`` is the end of its log."""

    def __init__(self, what: str, log: str, text: str) -> None:
        super().__init__(f"{what} failed: {reason(text)} (the whole log: {log})")
        self.what = what
        self.log = log
        self.text = text


def run(
    argv: Sequence[str],
    *,
    what: str,
    cwd: str,
    log: str,
    environment: Mapping[str, str] | None = None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run ``argv`` to its end with its output appended to ``log``.

    ``step`` is told of the counters that ninja prints.  Raises CommandError, and HostError when the
    program is not there; whatever ends this, the program and its children end too.
    """
    with open(log, "ab") as file:
        start = file.tell()
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"{what}: cannot start {argv[0]}: {(error.strerror or '').lower()}") from None
        try:
            assert child.stdout is not None
            for line in child.stdout:
                file.write(line)
                if found := _NINJA_STEP.match(line[:40].decode("latin-1")):
                    step(int(found[1]), int(found[2]))
            status = child.wait()
        except BaseException:
            _kill(child)
            raise
    if status:
        raise CommandError(what, log, tail(log, start))


def output(
    argv: Sequence[str], *, cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Standard output of a short ``argv``; HostError with its last error line when it fails."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise HostError(f"cannot start {argv[0]}: {(error.strerror or '').lower()}") from None
    if done.returncode:
        raise HostError(f"{os.path.basename(argv[0])} failed: {reason(done.stderr or done.stdout)}")
    return done.stdout


def tail(log: str, start: int = 0) -> str:
    """The end of ``log``, at most 64 KiB, and nothing before the offset ``start``."""
    with open(log, "rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().decode("utf-8", "replace")


def reason(text: str) -> str:
    """The line of ``text`` that says best why a command failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (
        r"No space left on device",
        r"\bERROR: ",
        r"\berror: ",
        r"undefined reference",
        r"No rule to make",
        r"[Ee]rror",
    ):
        for line in lines:
            if re.search(pattern, line):
                return line[:300]
    return lines[-1][:300] if lines else "it said nothing"


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
