"""A host for tests and for ``nemu run``: an emulated machine with working KVM, ready in a moment.

with Host(tree={"src/nemu": ...}) as host:
    host.run(["uname", "-a"]).stdout
    host.call("package.module:function", {"argument": 1})
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from nemu.errors import HostError
from nemu.host.emulated import erofs, template, wire
from nemu.host.emulated.client import Client, Job, JobError
from nemu.host.emulated.tree import tree_image

if TYPE_CHECKING:
    from nemu.host.emulated.shared import SharedDirectories

TREE = "/nemu"  # where the program tree is mounted inside
FILES = "/run/files"
SHARED = "/run/shared"
PLUG_PATIENCE = 20.0  # seconds until a device that was plugged in is found
PATH = (f"{TREE}/src", f"{TREE}/tests", TREE)


def shared_path(number: int) -> str:
    """Where the directory ``number`` of ``shared`` is inside."""
    return f"{SHARED}/{number}"


class Result(NamedTuple):
    """How a program ended and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


class CallError(Exception):
    """A function called inside raised; the text is its traceback."""


class Host:
    """One emulated host, a private clone of a cached snapshot.  Many may run at once.

    ``tree``: what is mounted under /nemu, inside path -> directory here; default: nemu itself.
    ``files``: inside absolute path -> file here, copied in at the start, read-only.
    ``packages``: distribution packages besides the usual ones.  ``memory``: MiB.  ``shared``: directories
    here, each with whether it is read-only, that are live at ``shared_path(0)`` and so on inside.
    """

    def __init__(
        self,
        *,
        tree: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
        memory: int = 1024,
        shared: Sequence[tuple[str, bool]] = (),
    ) -> None:
        self._luns = 0
        self._shared: SharedDirectories | None = None
        snapshot = template.ensure(tuple(packages), memory)
        tree_fd = tree_image(tree)
        files_fd = _files_image(files or {})
        try:
            self._qemu = template.restore(snapshot, tree_fd, files_fd, shared=bool(shared))
        finally:
            os.close(tree_fd)
            os.close(files_fd)
        try:
            self.client = Client(self._qemu)
            self._prepare(files or {})
            if shared:
                self._share(shared)
        except BaseException:
            self.close()
            raise

    def _prepare(self, files: Mapping[str, str]) -> None:
        import time

        self.client.operate("hello", now=time.time(), entropy=os.urandom(64).hex())
        self.client.operate("mount", device="/dev/vdb", target=TREE, kind="erofs")
        if files:
            self.client.operate("mount", device="/dev/vdc", target=FILES, kind="erofs")
            links = {inside: f"{FILES}/{number}" for number, inside in enumerate(files)}
            self.client.operate("link_paths", links=links, directories=[])

    def _share(self, shared: Sequence[tuple[str, bool]]) -> None:
        from nemu.host.emulated.shared import TAG, SharedDirectories

        self._shared = SharedDirectories(self._qemu, self.client.pump, shared)
        readonly = all(readonly for _, readonly in shared)
        self.client.operate(
            "mount", device=TAG, target=SHARED, kind="virtiofs", readonly=readonly, patience=PLUG_PATIENCE
        )

    def close(self) -> None:
        """End it at once; what was not flushed to an attached disk is lost, as when a machine loses power."""
        self._qemu.close()
        if self._shared:
            self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        timeout: float = 120.0,
    ) -> Result:
        """Run a program to its end.  Raises TimeoutError after ``timeout`` seconds; it is killed then."""
        job = self.start(argv, stdin=stdin, env=env, cwd=cwd)
        return self._finish(job, timeout)

    def run_module(
        self,
        module: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> Result:
        """``python3 -m module argv...`` without the start of an interpreter: a fork of the agent."""
        request = {
            "what": "spawn",
            "module": module,
            "arguments": list(argv),
            "path": PATH,
            "env": dict(env or {}),
        }
        return self._finish(self._start(request, stdin), timeout)

    def start(
        self, argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: str = ""
    ) -> Job:
        """Start a program and return at once; its output is in ``job.sink(1)`` and ``job.sink(2)``."""
        environment = {"PYTHONPATH": ":".join(PATH), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        request = {"what": "spawn", "argv": list(argv), "env": environment, "cwd": cwd}
        return self._start(request, stdin)

    def call(
        self, function: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 120.0
    ) -> Any:
        """Call ``module:function`` with keyword arguments inside; arguments and result are JSON values."""
        request = {"what": "spawn", "function": function, "arguments": dict(arguments or {}), "path": PATH}
        job = self._start(request, b"")
        result = self._finish(job, timeout)
        if result.status:
            raise CallError(f"{function} inside the emulated host:\n{result.stderr.decode(errors='replace')}")
        return json.loads(job.sink(3))

    def put(self, source: str | bytes, inside: str, mode: int = 0o644) -> None:
        """Copy a file (or these bytes) to the path ``inside``."""
        data = (
            wire.Source(data=source)
            if isinstance(source, bytes)
            else wire.Source(os.open(source, os.O_RDONLY))
        )
        job = self.client.start({"what": "put", "path": inside, "mode": mode}, {0: data}, {})
        self.client.finish(job, None)

    def get(self, inside: str) -> bytes:
        """The contents of the file ``inside``.  Raises JobError when it cannot be read."""
        job = self.client.start({"what": "get", "path": inside}, {}, {1: wire.Sink()})
        self.client.finish(job, None)
        return bytes(job.sink(1))

    def attach(self, path: str, readonly: bool = False, image: str = "raw") -> str:
        """Plug the file or block device ``path``, of format ``image``, in as a disk; the device node inside.

        Writes land in the file and a flush reaches it.  Raises HostError when another one writes to it, or
        when it is no such image.
        """
        lun = self._luns
        self._luns += 1
        driver = "file" if os.path.isfile(path) else "host_device"
        protocol = {
            "driver": driver,
            "filename": os.path.abspath(path),
            "locking": "on" if driver == "file" else "auto",
        }
        self._qemu.execute(
            "blockdev-add",
            **{
                "node-name": f"disk{lun}",
                "driver": image,
                "read-only": readonly,
                "discard": "unmap",
                "file": protocol,
            },
        )
        self._qemu.execute(
            "device_add", driver="scsi-hd", bus="scsi.0", drive=f"disk{lun}", lun=lun, id=f"scsi{lun}"
        )
        device: str = self.client.operate("attach", lun=lun)
        return device

    def forward(self, protocol: str, address: str, port: int, inside: int) -> None:
        """Let ``port`` of this host (at the IPv4 ``address``, "" for all) lead to port ``inside``.

        ``protocol`` is tcp or udp.  Raises HostError when it cannot listen there.
        """
        rule = f"{protocol}:{address}:{port}-:{inside}"
        if self._qemu.execute("human-monitor-command", **{"command-line": f"hostfwd_add net {rule}"}):
            raise HostError(f"cannot listen at {protocol} port {address or '*'}:{port}")

    def _start(self, request: dict[str, Any], stdin: bytes) -> Job:
        sinks = {stream: wire.Sink() for stream in (1, 2, 3)}
        return self.client.start(request, {0: wire.Source(data=stdin)}, sinks)

    def _finish(self, job: Job, timeout: float) -> Result:
        try:
            status = job.wait(timeout)
        except TimeoutError:
            job.signal(9, group=True)
            job.wait(10)
            printed = bytes(job.sink(1)[-400:] + job.sink(2)[-400:])
            raise TimeoutError(f"still running after {timeout:.0f} s; it printed {printed!r}") from None
        if job.error:
            raise JobError(job.error)
        return Result(status, bytes(job.sink(1)), bytes(job.sink(2)))


def _files_image(files: Mapping[str, str]) -> int:
    """A disk image in memory with ``files`` numbered from 0: its descriptor."""
    descriptor = os.memfd_create("nemu-files")
    try:
        image = erofs.Image()
        for number, path in enumerate(files.values()):
            image.file(str(number), path)
        image.write(descriptor, template.FILES_DISK_SIZE)
        if os.fstat(descriptor).st_size > template.FILES_DISK_SIZE:
            raise HostError("the kernel and initrd are too large for the emulated host")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
