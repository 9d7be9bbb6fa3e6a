"""The shell of ``nemu qmp``, on the qemu.qmp library."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from nemu.cli.qmp_words import Words, split
from nemu.errors import HostError

PROMPT = "(qmp) "
T = TypeVar("T")


def shell(where: str | tuple[str, int]) -> int:
    """Read commands until the input or the machine ends.  Raises HostError."""
    try:
        import qemu.qmp
    except ImportError:
        raise HostError(
            "the shell needs the Python package qemu.qmp (pip install qemu.qmp); "
            "nemu qmp VM COMMAND works without it"
        ) from None
    try:
        with Link(where) as link:
            return _read_commands(link)
    except qemu.qmp.QMPError as error:
        raise HostError(f"QMP: {error}") from None


class Link:
    """A connection whose events are printed by a thread of its own, while ``input`` waits for the user."""

    def __init__(self, where: str | tuple[str, int]) -> None:
        from qemu.qmp import QMPClient

        self._where = where
        self._client = QMPClient("nemu")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Link:
        self._thread.start()
        self._wait(self._client.connect(self._where))
        self._events = asyncio.run_coroutine_threadsafe(self._print_events(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._events.cancel()
        try:
            self._wait(self._client.disconnect())
        except Exception:  # the machine may have gone already, and cut the line in any way
            pass
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def package(self) -> str:
        """Who answers."""
        greeting = self._client.greeting
        return str(greeting.QMP.version["package"] or "QEMU") if greeting else "QMP"

    def execute(self, name: str, arguments: dict[str, Any]) -> Any:
        """Raises qemu.qmp's ExecuteError for what the server refuses."""
        return self._wait(self._client.execute(name, arguments))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _print_events(self) -> None:
        async for event in self._client.events:
            data = json.dumps(event["data"]) if "data" in event else ""
            line = f"{event['event']} {data}".rstrip()
            if sys.stdin.isatty():
                import readline

                print(f"\r\033[K{line}\n{PROMPT}{readline.get_line_buffer()}", end="", flush=True)
            else:
                print(line, flush=True)


def _read_commands(link: Link) -> int:
    from qemu.qmp import ExecInterruptedError, ExecuteError

    words = Words(link.execute("query-qmp-schema", {}))
    if sys.stdin.isatty():
        _set_up_completion(words)
        print(
            f"{link.package}: {len(words.commands)} commands; help lists them, Tab completes, Ctrl-D leaves"
        )
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "")
            _do(link, words, line)
        except EOFError:
            if sys.stdin.isatty():
                print()
            return 0
        except ExecuteError as error:
            print(f"{error.error_class}: {error}")
        except ExecInterruptedError:
            print("the machine has ended")
            return 0


def _do(link: Link, words: Words, line: str) -> None:
    command, *arguments = split(line) or [""]
    if command == "help":
        print("\n".join(words.help(*arguments[:1])))
    elif command:
        try:
            given = words.arguments(command, arguments)
        except ValueError as error:
            print(error)
            return
        result = link.execute(command, given)
        if result != {}:
            print(json.dumps(result, indent=2))


def _set_up_completion(words: Words) -> None:
    import readline

    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            found[:] = words.complete(readline.get_line_buffer()[: readline.get_endidx()])
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
