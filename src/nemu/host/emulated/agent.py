"""The agent inside the emulated host: PID 1 there, started before the snapshot, asked after it.

It starts programs (on pipes or a pseudo-terminal), calls Python functions by forking itself with
its modules already loaded, and moves files.  Only the owner of the emulated host can reach it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from nemu.host.emulated import wire

PORT = "/dev/vport0p1"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h
# What nemu and its tests import: loaded once, shared by every fork.
PRELOAD = (
    "_queue argparse array atexit bisect collections contextlib copy dataclasses encodings.ascii enum "
    "errno functools gettext hashlib heapq importlib.util inspect io itertools locale lz4.block mmap "
    "operator pathlib queue random re resource runpy select selectors shutil stat string subprocess "
    "tempfile threading tomllib typing weakref zlib "
).split()
EXIT_SIGNALS = 128  # a program that a signal ends has this much and the signal as its status
MS_RDONLY = 1
RETRY = 0.05  # seconds

_libc = ctypes.CDLL(None, use_errno=True)


class Job:
    """One thing that was asked for: a process, or an operation of the agent itself."""

    def __init__(self, *streams: int) -> None:
        self.streams = set(streams)  # that have not ended; the last end is the end of an operation
        self.pid = 0
        self.terminal = -1
        self.outputs: list[int] = []
        self.fifos: list[str] = []


class Agent:
    """Answers on the port for ever."""

    def __init__(self, link: int) -> None:
        self.pump = wire.Pump(link, self.on_frame, self.on_end)
        self.jobs: dict[int, Job] = {}
        self.connecting: dict[int, str] = {}  # jobs that wait for somebody to listen at a path
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.wake = wake_read
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.pump.watched[wake_read] = self.reap
        self.operations: dict[str, Callable[..., Any]] = {
            "hello": hello,
            "mount": mount,
            "link_paths": link_paths,
            "attach": attach,
            "quiesce": quiesce,
        }

    def serve(self) -> NoReturn:
        self.pump.send(wire.READY, 0)
        while True:
            self.pump.turn(RETRY if self.connecting else None)
            for number, path in list(self.connecting.items()):
                self.connect(number, path)

    def on_frame(self, kind: int, channel: int, payload: bytes) -> None:
        number = channel // wire.STREAMS
        job = self.jobs.get(number)
        if kind == wire.START:
            try:
                self.start(number, json.loads(payload))
            except Exception as error:
                self.finish(number, 1, f"{type(error).__name__}: {error}")
        elif job is None:
            return
        elif kind == wire.SIGNAL and job.pid:
            signal_number, group = payload[0], payload[1]
            (os.killpg if group else os.kill)(job.pid, signal_number)
        elif kind == wire.RESIZE and job.terminal >= 0:
            fcntl.ioctl(
                job.terminal, termios.TIOCSWINSZ, struct.pack("<HHHH", *struct.unpack("<HH", payload), 0, 0)
            )

    def on_end(self, channel: int) -> None:
        """A file is moved, or a socket's other end is gone; a process is done when it exits."""
        number = channel // wire.STREAMS
        job = self.jobs.get(number)
        if job is not None and not job.pid:
            job.streams.discard(channel % wire.STREAMS)
            if not job.streams:
                self.finish(number, 0)

    def start(self, number: int, request: dict[str, Any]) -> None:
        what = request["what"]
        base = number * wire.STREAMS
        if what in self.operations:
            result = self.operations[what](**request.get("arguments", {}))
            self.finish(number, 0, result=result)
        elif what == "get":
            self.pump.sources[base + 1] = wire.Source(os.open(request["path"], os.O_RDONLY | os.O_CLOEXEC))
            self.jobs[number] = Job(1)
        elif what == "put":
            os.makedirs(os.path.dirname(request["path"]) or "/", exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self.jobs[number] = Job(0)
            self.pump.sinks[base] = wire.Sink(os.open(request["path"], flags, request["mode"]))
        elif what == "connect":
            self.jobs[number] = Job(0, 1)
            self.connecting[number] = request["path"]
        else:
            self.spawn(number, request)

    def connect(self, number: int, path: str) -> None:
        """Connect a job to the Unix socket ``path`` as soon as it can be; READY says so."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            end.connect(path)
        except OSError:
            end.close()
            return
        del self.connecting[number]
        base = number * wire.STREAMS
        self.pump.sinks[base] = wire.Sink(os.dup(end.fileno()))
        self.pump.sources[base + 1] = wire.Source(end.detach())
        self.pump.send(wire.READY, base)

    def spawn(self, number: int, request: dict[str, Any]) -> None:
        """Start a process: ``argv`` by exec, or ``function`` or ``module`` in a fork of this interpreter."""
        base = number * wire.STREAMS
        ours, theirs, job = self.streams(base, request)
        pid = os.fork()
        if pid == 0:
            run_child(request, theirs, job.terminal)
        for descriptor in set(theirs):
            os.close(descriptor)
        job.pid = pid
        self.jobs[number] = job
        for stream, descriptor in ours.items():
            os.set_blocking(descriptor, False)
            if stream == 0:
                self.pump.sinks[base] = wire.Sink(descriptor)
            else:
                self.pump.sources[base + stream] = wire.Source(descriptor)
                job.outputs.append(base + stream)

    def streams(self, base: int, request: dict[str, Any]) -> tuple[dict[int, int], list[int], Job]:
        """Our ends by stream number, the child's descriptors 0 to 3, and the job."""
        terminal = request.get("terminal")
        on_terminal = terminal["streams"] if terminal else []
        job = Job()
        ours: dict[int, int] = {}
        theirs: list[int] = []
        slave = -1
        if terminal:
            job.terminal, slave = os.openpty()
            attributes = termios.tcgetattr(slave)
            attributes[1] &= ~termios.OPOST  # the user's own terminal adds the carriage returns
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("<HHHH", *terminal["size"], 0, 0))
        for stream in range(4 if "function" in request else 3):
            if stream in on_terminal:
                theirs.append(os.dup(slave))
                continue
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            ours[stream] = write_end if stream == 0 else read_end
            theirs.append(read_end if stream == 0 else write_end)
        if terminal:
            os.close(slave)
            if 0 in on_terminal:
                ours[0] = os.dup(job.terminal)
            ours[1 if 1 in on_terminal else 2 if 2 in on_terminal else 7] = os.dup(job.terminal)
        for index, path in enumerate(request.get("outputs", ())):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkfifo(path)
            job.fifos.append(path)
            ours[4 + index] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return ours, theirs, job

    def reap(self) -> None:
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for number, job in list(self.jobs.items()):
                if job.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    self.finish(number, code if code >= 0 else EXIT_SIGNALS - code)

    def finish(self, number: int, status: int, error: str = "", result: Any = None) -> None:
        job = self.jobs.pop(number, None)
        base = number * wire.STREAMS
        if job is not None:
            for channel in job.outputs:
                self.pump.drain(channel)
            for path in job.fifos:
                os.unlink(path)
            if job.terminal >= 0:
                os.close(job.terminal)
        for stream in range(wire.STREAMS):
            self.pump.close_channel(base + stream)
        self.pump.send(
            wire.EXIT, base, json.dumps({"status": status, "error": error, "result": result}).encode()
        )


def run_child(request: dict[str, Any], streams: list[int], terminal: int) -> NoReturn:
    """The child's side of a start: never returns into the agent."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, descriptor in enumerate([os.dup(fd) for fd in streams]):
            os.dup2(descriptor, number)
        if terminal >= 0:
            controlling = next(fd for fd in (0, 1, 2) if os.isatty(fd))
            fcntl.ioctl(controlling, termios.TIOCSCTTY, 0)
        is_call = "function" in request
        os.closerange(4 if is_call else 3, 1024)
        os.chdir(request.get("cwd") or "/root")
        os.environ.update(request.get("env", {}))
        if "argv" in request:
            os.execvp(request["argv"][0], request["argv"])
        status = run_python(request)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except OSError as error:
        if "argv" in request:
            os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
            status = 127
        else:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(status)


def run_python(request: dict[str, Any]) -> int:
    """Run ``module`` as ``python3 -m`` does, or call ``function``; its result goes to descriptor 3."""
    import importlib

    for name in [name for name in sys.modules if name == "nemu" or name.startswith("nemu.")]:
        del sys.modules[name]
    sys.path[0:0] = request["path"]
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    if "module" in request:
        import runpy

        sys.argv = ["nemu", *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        return 0
    module, _, name = request["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**request["arguments"])
    with open(3, "w") as out:
        json.dump(result, out)
    return 0


def hello(now: float, entropy: str) -> None:
    """After a restore: the clock of today and random numbers that no other clone has."""
    time.clock_settime(time.CLOCK_REALTIME, now)
    seed = bytes.fromhex(entropy)
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("<ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(device, RNDRESEEDCRNG)
    import random

    random.seed(seed)


def mount(device: str, target: str, kind: str, readonly: bool = True, patience: float = 0.0) -> None:
    """Mount ``device``, which may take ``patience`` seconds to appear."""
    os.makedirs(target, exist_ok=True)
    deadline = time.monotonic() + patience
    while _libc.mount(device.encode(), target.encode(), kind.encode(), MS_RDONLY if readonly else 0, None):
        number = ctypes.get_errno()
        if time.monotonic() > deadline:
            raise OSError(number, f"mount {device}: {os.strerror(number)}")
        time.sleep(0.01)


def link_paths(links: dict[str, str], directories: list[str]) -> None:
    """Make the user's paths exist here: symbolic links to what was attached, and directories."""
    for path in directories:
        os.makedirs(path, exist_ok=True)
    for path, target in links.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)


def attach(lun: int) -> str:
    """The device node of the disk that was just plugged in as ``lun``."""
    host = next(name for name in os.listdir("/sys/class/scsi_host"))
    place = f"/sys/bus/scsi/devices/{host.removeprefix('host')}:0:0:{lun}/block"
    deadline = time.monotonic() + 10
    with open(f"/sys/class/scsi_host/{host}/scan", "w") as scan:
        scan.write(f"0 0 {lun}")
    while time.monotonic() < deadline:
        names = os.listdir(place) if os.path.isdir(place) else []
        # It appears bit by bit: the directory, its capacity (0 until it is read), the device node.
        if names and _number(f"{place}/{names[0]}/size") and os.path.exists(f"/dev/{names[0]}"):
            return f"/dev/{names[0]}"
        time.sleep(0.002)
    raise OSError(f"the disk with LUN {lun} did not appear")


def _number(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except OSError:
        return 0


def quiesce() -> None:
    """Before the snapshot: nothing stale may survive it."""
    import gc

    for name in os.listdir("/sys/class/block"):
        if name.startswith("vd"):
            descriptor = os.open(f"/dev/{name}", os.O_RDONLY)
            fcntl.ioctl(descriptor, 0x1261)  # BLKFLSBUF: what the partition scan has read
            os.close(descriptor)
    os.sync()
    with open("/proc/sys/vm/compact_memory", "w") as file:
        file.write("1")
    gc.collect()
    gc.freeze()


def main() -> NoReturn:
    os.environ.clear()
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8", TERM="linux")
    import importlib

    for name in PRELOAD:
        importlib.import_module(name)
    Agent(os.open(PORT, os.O_RDWR | os.O_CLOEXEC)).serve()


if __name__ == "__main__":
    main()
