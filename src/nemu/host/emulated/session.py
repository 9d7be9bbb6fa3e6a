"""``nemu run --host emulated``: the same run, inside.

The user's files are attached or copied in, ``nemu run --host native`` runs inside, and its terminal,
streams, signals, exit status and report are the user's.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from nemu.config.port import PortConfig
from nemu.errors import ConfigError, HostError
from nemu.host.emulated import wire
from nemu.host.emulated.client import Job, JobError
from nemu.host.emulated.host import PATH, Host, shared_path

if TYPE_CHECKING:
    import socket

    from nemu.config import MachineConfig, RunOptions
    from nemu.config.chardev import ChardevConfig
    from nemu.config.disk import DiskConfig
    from nemu.config.net import NetConfig
    from nemu.config.vsock import VsockConfig

MIB = 1 << 20
INSIDE = "/run/nemu"
TIMED_OUT = 4
GRACE = 15.0  # seconds after --timeout until the emulated host itself is given up
OVERHEAD = 384  # MiB: the kernel and the programs of the emulated host
SMALLEST = 1024  # MiB
MAX_FILES = 3  # streams of a job that are left for them
CLIENTS = 64  # of one socket at once, for each takes two descriptors; the others wait in the backlog
_PATIENCE = 3  # signals after which nobody is asked any more
FIRST_PORT = 20000  # inside, for the first forward
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(config: MachineConfig, options: RunOptions) -> int:
    """Run ``config`` in an emulated host; gives the exit status.  Raises ConfigError and HostError."""
    _refuse_taps(config)
    _refuse_sockets(config)
    _refuse_vsock(config)
    with ExitStack() as stack:
        config = _seed(config, stack)
        _lock_disks(config, stack)
        files = {f"{INSIDE}/{name}": path for name in ("kernel", "initrd") if (path := getattr(config, name))}
        shared = [(fs.dir, fs.readonly) for fs in config.filesystems]
        # What holds a disk to its limits, and what shares directories, runs inside.
        daemon = any(not disk._replace(format="raw").in_process for disk in config.disks)
        packages = ("qemu-system-common",) if daemon or shared else ()
        host = stack.enter_context(
            Host(files=files, packages=packages, memory=_memory(config), shared=shared)
        )
        session = _Session(host, config, options, stack)
        return session.run()


def _refuse_taps(config: MachineConfig) -> None:
    for net in config.nets:
        for forward in net.forward:
            if ":" in forward.address:
                problem = "the emulated host forwards IPv4 addresses only"
                raise ConfigError("--net", f"{net},forward={forward}", problem)
        if net.backend != "user":
            raise ConfigError(
                "--net", str(net), "the emulated host cannot reach it; use --net user, or a host with KVM"
            )


def _refuse_vsock(config: MachineConfig) -> None:
    if config.vsock and not config.vsock.socket:
        value = f"cid={config.vsock.cid}"
        raise ConfigError(
            "--vsock", value, "nothing here could reach it in the emulated host; use a host with KVM"
        )


def _refuse_sockets(config: MachineConfig) -> None:
    named = [("--disk", "vhost-user", disk.socket) for disk in config.disks]
    named += [("--vhost-user", "socket", device.socket) for device in config.vhost_users]
    named += [(fs.option, "socket", fs.socket) for fs in config.filesystems]
    for option, key, path in named:
        if path:
            problem = "the emulated host cannot reach it; use a host with KVM"
            raise ConfigError(option, f"{key}={path}", problem)


def _lock_disks(config: MachineConfig, stack: ExitStack) -> None:
    """Open and lock the disks as a native run does, with the same complaints."""
    from nemu.backends.disk import Disk

    for disk in config.disks:
        if disk.format != "qcow2":  # such an image is opened, locked and checked by who attaches it
            stack.callback(Disk(disk.path, disk.readonly).close)
    for pmem in config.pmems:
        stack.callback(Disk(pmem.path, pmem.readonly, "--pmem").close)


def _seed(config: MachineConfig, stack: ExitStack) -> MachineConfig:
    """``config`` with the seed for cloud-init as one of its disks, which is what a native run makes of it."""
    if not config.cloud_init:
        return config
    from nemu.cidata import Seed
    from nemu.config.disk import DiskConfig

    seed = Seed(config.cloud_init)
    stack.callback(seed.close)
    disks = (*config.disks, DiskConfig(seed.path, readonly=True, queues=1))
    return replace(config, cloud_init="", disks=disks)


def _attach(host: Host, disk: DiskConfig) -> DiskConfig:
    """``disk`` as it is inside: what a qcow2 image holds is a raw one there."""
    try:
        path = host.attach(disk.path, disk.readonly, disk.format or "raw")
    except HostError as error:
        raise ConfigError("--disk", disk.path, str(error)) from error
    return disk._replace(path=path, format="raw")


def _memory(config: MachineConfig) -> int:
    """MiB for the emulated host: enough for the guest in a few round sizes, but not more than is here.

    Beyond that the guest's RAM is still as large as asked for; it is taken as the guest touches it.
    """
    needed = config.memory.maximum // MIB + OVERHEAD
    step = SMALLEST if needed <= 4 * SMALLEST else 4 * SMALLEST
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    return max(SMALLEST, min(-(-needed // step) * step, here // SMALLEST * SMALLEST))


class _Session:
    """One run inside ``host``; what is opened here is closed by ``stack``."""

    def __init__(self, host: Host, config: MachineConfig, options: RunOptions, stack: ExitStack) -> None:
        self._host = host
        self._options = options
        self._stack = stack
        self._outputs: list[str] = []
        self._sinks: dict[int, wire.Sink] = {}
        self._signals = 0
        kinds = (config.console.kind, config.serial.kind, *(port.kind for port in config.ports))
        self._terminal = "stdio" in kinds  # a terminal here is one inside, in raw mode
        self._input = self._terminal or bool(config.command)
        disks = tuple(_attach(host, disk) for disk in config.disks)
        pmems = tuple(pmem._replace(path=host.attach(pmem.path, pmem.readonly)) for pmem in config.pmems)
        self._config = replace(
            config,
            kernel=config.kernel and f"{INSIDE}/kernel",
            initrd=config.initrd and f"{INSIDE}/initrd",
            disks=disks,
            pmems=pmems,
            vsock=self._vsock(config),
            nets=self._forward(config.nets),
            filesystems=tuple(
                fs._replace(dir=shared_path(number)) for number, fs in enumerate(config.filesystems)
            ),
            # The command's root is the last of them.
            root=config.root and shared_path(len(config.filesystems) - 1),
            console=self._chardev("--console", config.console, "console"),
            serial=self._chardev("--serial", config.serial, "serial"),
            ports=tuple(
                PortConfig(port.name, *self._chardev("--port", port.chardev, f"port{number}"))
                for number, port in enumerate(config.ports)
            ),
        )
        self._qmp = self._serve_management()

    def run(self) -> int:
        options = self._options
        machine, report = f"{INSIDE}/machine.json", f"{INSIDE}/report.json"
        self._host.put(self._config.to_json().encode(), machine)
        argv = ["run", "--host", "native", "--machine-json", machine]
        argv += ["--start", options.start, *self._qmp]
        argv += ["--timeout", str(options.timeout)] if options.timeout else []
        argv += ["--report", report] if options.report else []
        job = self._start(argv)
        try:
            status = job.wait(options.timeout + GRACE if options.timeout else None)
        except TimeoutError:
            return TIMED_OUT
        if options.report:
            self._fetch_report(report, options.report)
        return status

    def _start(self, argv: list[str]) -> Job:
        from nemu.backends.stdio import RawTerminal, is_our_terminal

        terminals = []
        sources = {}
        if self._input and (is_our_terminal(0) or not os.isatty(0)):
            sources[0] = wire.Source(0, owned=False)
            if os.isatty(0) and self._terminal:
                terminals.append(0)
                self._stack.callback(RawTerminal(0).restore)
        if os.isatty(1):
            terminals.append(1)
        if self._config.command and 0 in terminals and os.isatty(2):
            terminals.append(2)
        sinks = {stream: wire.Sink(stream, owned=False) for stream in (1, 2)}
        request: dict[str, Any] = {
            "what": "spawn",
            "module": "nemu",
            "arguments": argv,
            "path": PATH,
            "outputs": self._outputs,
            "env": {name: os.environ[name] for name in ("TERM", "NEMU_DEBUG") if name in os.environ},
        }
        if terminals:
            request["terminal"] = {"streams": terminals, "size": _window_size()}
        job = self._host.client.start(request, sources, {**sinks, **self._sinks})
        self._forward_signals(job)
        return job

    def _forward_signals(self, job: Job) -> None:
        """Signals to this process go to the one inside; a change of the window's size too."""
        received, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def forward() -> None:
            for number in os.read(received, 64):
                if number == signal.SIGWINCH:
                    job.resize(*_window_size())
                elif number in _FORWARDED:
                    self._signals += 1
                    if self._signals > _PATIENCE:
                        raise SystemExit(128 + number)
                    job.signal(number)

        for number in (*_FORWARDED, signal.SIGWINCH):
            old = signal.signal(number, lambda number, frame: None)
            self._stack.callback(signal.signal, number, old)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wake, warn_on_full_buffer=False))
        self._host.client.pump.watched[received] = forward

    def _forward(self, nets: tuple[NetConfig, ...]) -> tuple[NetConfig, ...]:
        """``nets`` with forwards from ports of the emulated host, to which the user's ports lead."""
        numbers = count(FIRST_PORT)
        result = []
        for net in nets:
            inside = []
            for forward in net.forward:
                port = next(numbers)
                self._host.forward(forward.protocol, forward.address, forward.port, port)
                inside.append(forward._replace(address="", port=port))
            result.append(net._replace(forward=tuple(inside)))
        return tuple(result)

    def _chardev(self, option: str, chardev: ChardevConfig, name: str) -> ChardevConfig:
        """The same back end inside; its bytes come out to the user's file or socket."""
        inside = f"{INSIDE}/{name}"
        if chardev.kind == "file":
            if len(self._outputs) == MAX_FILES:
                value = f"file={chardev.path}"
                raise ConfigError(option, value, f"the emulated host has at most {MAX_FILES} output files")
            self._outputs.append(inside)
            self._sinks[3 + len(self._outputs)] = wire.Sink(_create(option, chardev.path))
            return chardev._replace(path=inside)
        if chardev.kind == "socket":
            from nemu.backends.listener import UnixListener

            listener = UnixListener(chardev.path, option, f"socket={chardev.path}")
            self._stack.callback(listener.close)
            # The same path inside, so that who asks the machine for its console gets the one that is here.
            inside = os.path.abspath(chardev.path)
            self._host.client.operate("link_paths", links={}, directories=[os.path.dirname(inside)])
            self._serve(listener.socket, inside)
            return chardev._replace(path=inside)
        return chardev

    def _serve_management(self) -> list[str]:
        """Open the sockets for QMP clients here; gives the settings of the nemu inside for them."""
        from nemu import rundir
        from nemu.qmp.sockets import open_endpoints, open_in_run_directory

        inside = f"{INSIDE}/qmp"
        endpoints = open_endpoints(self._options)
        for endpoint in endpoints:
            self._stack.callback(endpoint.close)
        if (own := open_in_run_directory(self._options)) is not None:
            self._stack.callback(own.close)
            endpoints.append(own)
        for endpoint in endpoints:
            if endpoint.listens:
                self._serve(endpoint.socket, inside)
            else:
                self._connect(endpoint.take(), inside)
        settings = ["--name", rundir.name_of(self._options), "--qmp", "off"]
        return [*settings, "--qmp", inside] if endpoints else settings

    def _vsock(self, config: MachineConfig) -> VsockConfig | None:
        """The same device inside; clients of the user's socket reach it."""
        if config.vsock is None:
            return None
        inside = f"{INSIDE}/vsock"
        self._listen("--vsock", config.vsock.socket, inside)
        return config.vsock._replace(socket=inside)

    def _listen(self, option: str, path: str, inside: str) -> None:
        """Each client that connects to ``path`` is connected to the socket ``inside``."""
        from nemu.backends.listener import UnixListener

        listener = UnixListener(path, option, f"socket={path}")
        self._stack.callback(listener.close)
        self._serve(listener.socket, inside)

    def _serve(self, listener: socket.socket, inside: str) -> None:
        """Each client that comes to ``listener`` is connected to the socket ``inside``; CLIENTS at a time."""
        watched = self._host.client.pump.watched
        clients = 0

        def accept() -> None:
            nonlocal clients
            try:
                connection, _ = listener.accept()
            except OSError:  # it has gone again
                return
            clients += 1
            if clients == CLIENTS:
                del watched[listener.fileno()]
            self._connect(connection, inside).on_exit = left

        def left() -> None:
            nonlocal clients
            clients -= 1
            watched[listener.fileno()] = accept

        watched[listener.fileno()] = accept

    def _connect(self, connection: socket.socket, inside: str) -> Job:
        source, sink = wire.Source(os.dup(connection.fileno())), wire.Sink(connection.detach())
        job = self._host.client.start({"what": "connect", "path": inside}, {}, {1: sink})
        job.on_ready = lambda: job.add_source(0, source)
        return job

    def _fetch_report(self, inside: str, path: str) -> None:
        try:
            text = self._host.get(inside)
        except JobError:
            return  # the run ended before there was anything to report, and has said why
        try:
            with open(path, "wb") as file:
                file.write(text)
        except OSError as error:
            raise ConfigError("--report", path, str(error.strerror)) from None


def _window_size() -> list[int]:
    """Rows and columns of the terminal."""
    for descriptor in (1, 0):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        return [size.lines, size.columns]
    return [24, 80]


def _create(option: str, path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(option, f"file={path}", f"cannot open it for writing: {error.strerror}") from None
