"""The outer end of the agent: jobs inside the emulated host, and their streams."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nemu.errors import HostError
from nemu.host.emulated import wire

if TYPE_CHECKING:
    from nemu.host.emulated.qemu import Qemu


class JobError(HostError):
    """The agent could not do what it was asked; the text is its reason."""


class Job:
    """Something under way inside.  ``status`` is None until it has ended."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._base = number * wire.STREAMS
        self.status: int | None = None
        self.error = ""
        self.result: Any = None
        self.on_ready: Callable[[], None] = lambda: None  # a socket is connected
        self.on_exit: Callable[[], None] = lambda: None

    def add_source(self, stream: int, source: wire.Source) -> None:
        """Send ``source`` as stream ``stream`` from now on."""
        self._client.pump.sources[self._base + stream] = source

    def sink(self, stream: int) -> bytearray:
        """What stream ``stream`` has brought so far, when it is collected."""
        return self._client.collected[self._base + stream]

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send it (with ``group`` all its children in its session's group too) a signal."""
        self._client.pump.send(wire.SIGNAL, self._base, bytes((number, group)))

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size."""
        self._client.pump.send(wire.RESIZE, self._base, struct.pack("<HH", rows, columns))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.  Raises TimeoutError when it has not ended after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.status is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._client.turn(left)
        return self.status


class Client:
    """Asks the agent of a running emulated host."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self.pump = wire.Pump(qemu.link.fileno(), self._on_frame, lambda channel: None)
        self.collected: dict[int, bytearray] = {}
        self._jobs: dict[int, Job] = {}
        self._next = 1
        self._ready = False

    def turn(self, timeout: float | None = None) -> None:
        """Move what can be moved.  Raises HostError when the emulated host has ended."""
        try:
            self.pump.turn(timeout)
        except wire.LinkClosedError:
            raise HostError(f"the emulated host ended: {self._qemu.failure()}") from None

    def wait_ready(self, timeout: float) -> None:
        """Wait for the agent's first word after a boot."""
        deadline = time.monotonic() + timeout
        while not self._ready:
            if time.monotonic() > deadline:
                raise HostError(f"the emulated host did not start within {timeout:.0f} s")
            self.turn(1.0)

    def start(
        self, request: dict[str, Any], sources: dict[int, wire.Source], sinks: dict[int, wire.Sink]
    ) -> Job:
        """Ask for a job; ``sources`` and ``sinks`` are its streams by number (see wire)."""
        number = self._next
        self._next += 1
        job = self._jobs[number] = Job(self, number)
        base = number * wire.STREAMS
        for stream, sink in sinks.items():
            self.pump.sinks[base + stream] = sink
            self.collected[base + stream] = sink.collected
        self.pump.send(wire.START, base, json.dumps(request).encode())
        for stream, source in sources.items():
            self.pump.sources[base + stream] = source
        return job

    def operate(self, what: str, timeout: float = 60.0, **arguments: Any) -> Any:
        """One of the agent's own operations.  Raises JobError with its reason."""
        job = self.start({"what": what, "arguments": arguments}, {}, {})
        self.finish(job, timeout)
        return job.result

    def finish(self, job: Job, timeout: float | None) -> None:
        """Wait for an operation.  Raises JobError when the agent could not do it."""
        job.wait(timeout)
        if job.error:
            raise JobError(job.error)

    def _on_frame(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == wire.READY and channel == 0:
            self._ready = True
        elif kind == wire.READY:
            self._jobs[channel // wire.STREAMS].on_ready()
        elif kind == wire.EXIT:
            self._on_exit(channel // wire.STREAMS, json.loads(payload))

    def _on_exit(self, number: int, message: dict[str, Any]) -> None:
        job = self._jobs.pop(number)
        base = number * wire.STREAMS
        for stream in range(wire.STREAMS):
            source = self.pump.sources.pop(base + stream, None)
            if source is not None:
                source.close()
        self._flush(base)
        job.error = message["error"]
        job.result = message["result"]
        job.status = message["status"]
        job.on_exit()

    def _flush(self, base: int) -> None:
        """Its last words reach their descriptors before anybody learns that it has ended."""
        for stream in range(wire.STREAMS):
            sink = self.pump.sinks.pop(base + stream, None)
            if sink is None:
                continue
            while sink.pending:
                sink.write()
            sink.close()
