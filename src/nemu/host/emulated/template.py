"""Snapshots of a booted emulated host: made once, restored in a fraction of a second as often as wanted.

The RAM of the snapshot is a file that every clone maps privately; the devices' state is another.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from nemu.errors import HostError
from nemu.host import cache
from nemu.host.emulated import client, qemu, root

MIB = 1 << 20
FILES = ("vmlinuz", "initrd", "root.erofs", "ram", "state")
TREE_DISK_SIZE = 1 << 30  # /dev/vdb: the program; fixed, because the snapshot knows it
FILES_DISK_SIZE = 64 << 30  # /dev/vdc: kernels and other files of the user
BOOT_TIMEOUT = 120.0  # seconds
KERNEL_COMMAND_LINE = "console=ttyS0 quiet mitigations=off panic=-1 random.trust_cpu=on"
SHARED_BUS = "shared-bus"
KEEP = 4  # snapshots of older versions, other memory sizes and other packages that are kept


class Template(NamedTuple):
    """A snapshot in the cache and what it takes to restore it."""

    directory: str
    memory: int  # MiB
    qemu: list[str]


def ensure(extra: tuple[str, ...] = (), memory: int = 1024) -> Template:
    """The snapshot with the ``extra`` packages and ``memory`` MiB, made on first use."""
    import hashlib

    with cache.Progress("building the emulated host") as progress:
        program = qemu.command(progress)
        kernel_debs, root_debs = root.sources(extra, progress)
        names = [os.path.basename(package.path) for package in (*kernel_debs, *root_debs)]
        facts = "\0".join((qemu.identity(program), repr(_machine(memory, "", "", 0, 0)), *names))
        key = hashlib.sha256(facts.encode() + root.recipe()).hexdigest()[:16]

        def build(directory: str) -> None:
            root.build_kernel(directory, kernel_debs)
            root.build_root(directory, root_debs, progress)
            progress("booting it once")
            _snapshot(directory, memory, program)

        return Template(cache.entry("host", key, FILES, build, keep=KEEP), memory, program)


def restore(template: Template, tree: int, files: int, *, shared: bool = False) -> qemu.Qemu:
    """A clone that runs, with the descriptors ``tree`` and ``files`` as its two disks.

    Its agent answers as soon as it is asked.  With ``shared`` other processes may map its RAM (vhost-user),
    which is then a copy of the snapshot's and costs as much time as that takes.
    """
    inherited = [tree, files]
    ram = os.path.join(template.directory, "ram")
    if shared:
        inherited.append(_copy(ram))
        ram = f"/proc/self/fd/{inherited[-1]}"
    backing = f"mem-path={ram},share={'on' if shared else 'off'}"
    machine = _machine(template.memory, template.directory, backing, tree, files)
    state = os.open(os.path.join(template.directory, "state"), os.O_RDONLY)
    clone = qemu.Qemu(template.qemu, [*machine, "-incoming", "defer"], tuple(inherited))
    if shared:
        os.close(inherited.pop())
    try:
        _ignore_shared(clone)
        clone.hand_over("state", state)
        clone.execute("migrate-incoming", uri="fd:state")
        clone.wait_event("RESUME")
    except BaseException:
        clone.close()
        raise
    finally:
        os.close(state)
    return clone


def _copy(path: str) -> int:
    """A descriptor of a copy of the sparse file ``path`` in memory."""
    with open(path, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        copy = sparse("nemu-host-ram", size)
        end = 0
        while (begin := _seek(source.fileno(), end, os.SEEK_DATA, size)) < size:
            end = _seek(source.fileno(), begin, os.SEEK_HOLE, size)
            os.lseek(copy, begin, os.SEEK_SET)
            while begin < end:
                begin += os.sendfile(copy, source.fileno(), begin, end - begin)
    return copy


def _seek(descriptor: int, offset: int, whence: int, size: int) -> int:
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError:  # ENXIO: no data any more
        return size


def _machine(memory: int, directory: str, backing: str, tree: int, files: int) -> list[str]:
    """QEMU's arguments: the same for the snapshot and its clones, but for the ``backing`` of RAM.

    One CPU: more cost more than they gain.  cx16 off: the emulation of cmpxchg16b in QEMU 7.2 corrupts flags.
    """

    def disk(name: str, file: str) -> tuple[str, ...]:
        drive = f"driver=raw,node-name={name},read-only=on,file.driver=file,file.filename={file}"
        return (
            "-blockdev",
            f"{drive},file.locking=off",
            "-device",
            f"virtio-blk-pci,drive={name},disable-legacy=on",
        )

    return [
        *(
            "-M",
            "q35,memory-backend=ram,i8042=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "EPYC,cx16=off,xsave=off",
            "-smp",
            "1",
        ),
        *("-m", f"{memory}M", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-object", f"memory-backend-file,id=ram,size={memory}M,{backing}"),
        *(
            "-kernel",
            f"{directory}/vmlinuz",
            "-initrd",
            f"{directory}/initrd",
            "-append",
            KERNEL_COMMAND_LINE,
        ),
        *("-serial", "stdio"),
        *("-device", "virtio-serial-pci,disable-legacy=on", "-device", "virtserialport,chardev=agent,nr=1"),
        *disk("root", f"{directory}/root.erofs"),
        *disk("tree", f"/proc/self/fd/{tree}"),
        *disk("files", f"/proc/self/fd/{files}"),
        *("-device", "virtio-scsi-pci,id=scsi,disable-legacy=on"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="),
        *("-device", "virtio-rng-pci,disable-legacy=on"),
        # A place for shared directories, whose device cannot be in a snapshot.
        *("-device", f"pcie-root-port,id={SHARED_BUS},chassis=1"),
    ]


def _snapshot(directory: str, memory: int, program: list[str]) -> None:
    """Boot what is in ``directory`` and leave its ``ram`` and ``state`` there."""
    tree = sparse("nemu-tree", TREE_DISK_SIZE)
    files = sparse("nemu-files", FILES_DISK_SIZE)
    state = os.open(os.path.join(directory, "state"), os.O_WRONLY | os.O_CREAT, 0o644)
    backing = f"mem-path={directory}/ram,share=on"
    host = qemu.Qemu(program, _machine(memory, directory, backing, tree, files), (tree, files))
    try:
        agent = client.Client(host)
        agent.wait_ready(BOOT_TIMEOUT)
        agent.operate("quiesce")
        _ignore_shared(host)
        host.hand_over("state", state)
        host.execute("migrate", uri="fd:state")
        while (progress := host.execute("query-migrate"))["status"] not in ("completed", "failed"):
            time.sleep(0.01)
        if progress["status"] == "failed":
            raise HostError(
                f"the emulated host cannot be snapshot: {progress.get('error-desc', 'no reason given')}"
            )
        host.execute("quit")
    finally:
        host.close()
        for descriptor in (tree, files, state):
            os.close(descriptor)


def _ignore_shared(host: qemu.Qemu) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    host.execute("migrate-set-capabilities", capabilities=[capability])


def sparse(name: str, size: int) -> int:
    """A file in memory without a name: its descriptor."""
    descriptor = os.memfd_create(name)
    os.truncate(descriptor, size)
    return descriptor
