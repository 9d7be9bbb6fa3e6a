"""The ``nemu`` command.  Each subcommand is a module that is imported only when it is used.

A subcommand's module has ``register(subparsers, name)``, which adds its parser and sets the
default ``run`` to a function of the parsed arguments that gives the exit status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from nemu.errors import NemuError

INTERNAL_ERROR = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``nemu`` with ``argv`` (without the program's name); gives the exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except NemuError as error:
        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # What is left in the buffer would raise once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("NEMU_DEBUG"):
            raise
        complain(f"internal error: {type(error).__name__}: {error} (NEMU_DEBUG=1 shows where)")
        return INTERNAL_ERROR


def _run(argv: Sequence[str]) -> int:
    from nemu.cli import parser

    arguments = parser.parse(argv)
    status: int = arguments.run(arguments)
    sys.stdout.flush()
    return status


def complain(text: str) -> None:
    """One line on standard error, whatever characters ``text`` has."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    sys.stderr.write(f"nemu: {line}\n")
    sys.stderr.flush()
