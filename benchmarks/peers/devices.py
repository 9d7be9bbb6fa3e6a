"""The devices that are compared: their options for ours and for QEMU, and what runs beside the VMM.

Used in the emulated host.  The images lie on a tmpfs, so that the way to them is measured and not they.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from nemu.errors import HostError
from peers.boots import tap_device
from peers.machines import MODERN

MIB = 1 << 20
IPERF3_PORT, SOCKPERF_PORT = 5201, 11111
PATIENCE = 30.0  # seconds until a program that does not listen is given up
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
BLK, VHOST_USER_BLK = 64, 65  # sizes in MiB, by which the guest knows its disks
PMEM, SHARED_FILE = 64, 64  # MiB
QEMU, QEMU_IOTHREAD = "qemu", "qemu-iothread"


class Place(NamedTuple):
    """Where one machine has its images and sockets, and its number among the machines."""

    directory: str
    number: int

    def fill(self, option: str) -> str:
        return option.format(place=self.directory, number=self.number)


class Device(NamedTuple):
    """``ours`` and ``theirs`` (by machine): options, in which ``{place}`` and ``{number}`` are the Place's.

    ``backend(place)`` is the host's side, ready when the context is entered.
    """

    ours: tuple[str, ...]
    theirs: dict[str, tuple[str, ...]]
    backend: Callable[[Place], AbstractContextManager[None]]


@contextmanager
def program(argv: list[str], ready: Callable[[], bool]) -> Iterator[None]:
    """``argv`` in the background; entered when it is ``ready``.  Raises HostError."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError as error:
        raise HostError(f"{argv[0]} is not installed") from error
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise HostError(f"{argv[0]} does not listen: {process.stdout.read()!r}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def image(path: str, mib: int) -> Iterator[None]:
    """A file of ``mib`` MiB that is all there (no holes)."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib * MIB)
    yield


@contextmanager
def storage_daemon(place: Place) -> Iterator[None]:
    path = f"{place.directory}/vhost-user-blk"
    address = f"addr.type=unix,addr.path={path}.sock"
    argv = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=image,filename={path}"),
        *("--export", f"type=vhost-user-blk,id=export,node-name=image,writable=on,{address}"),
    ]
    with image(path, VHOST_USER_BLK), program(argv, lambda: os.path.exists(f"{path}.sock")):
        yield


@contextmanager
def virtiofsd(place: Place, source: str) -> Iterator[None]:
    """Shares the directory ``source``."""
    path = f"{place.directory}/virtiofs.sock"
    argv = [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={source}", "-o", "cache=auto", "-f"]
    with program(argv, lambda: os.path.exists(path)):
        yield


@contextmanager
def shared_file(place: Place) -> Iterator[None]:
    """A directory with the file that is read and written."""
    source = f"{place.directory}/shared"
    os.mkdir(source)
    with image(f"{source}/file", SHARED_FILE), virtiofsd(place, source):
        yield


@contextmanager
def tap(name: str, address: str) -> Iterator[None]:
    """A tap with servers of iperf3 and sockperf at ``address``."""
    tap_device("add", name)
    try:
        for words in (["addr", "add", f"{address}/24", "dev", name], ["link", "set", name, "up"]):
            subprocess.run(["ip", *words], check=True)
        iperf3 = ["iperf3", "--server", "--bind", address]
        sockperf = ["sockperf", "server", "--tcp", "--ip", address]
        with (
            program(iperf3, lambda: _listens(address, IPERF3_PORT)),
            program(sockperf, lambda: _listens(address, SOCKPERF_PORT)),
        ):
            yield
    finally:
        tap_device("del", name)


def _listens(address: str, port: int) -> bool:
    wanted = f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}:{port:04X} 00000000:0000 0A"
    with open("/proc/net/tcp", encoding="ascii") as file:
        return wanted in file.read()


def _disk(options: str = "", file: str = "") -> tuple[str, ...]:
    return (
        *("-blockdev", f"driver=raw,node-name=blk,file.driver=file,file.filename={{place}}/blk{file}"),
        *("-device", f"virtio-blk-pci,drive=blk,{MODERN}{options}"),
    )


def _card(kind: int, vhost: str) -> Device:
    """The guest finds it by ``kind``, and the address of the host in the card's address (guest.sh)."""
    name = f"bench{kind}-{{number}}"
    mac = f"02:{kind:02x}:0a:{kind:02x}:{{number:02x}}:01"
    return Device(
        ours=("--net", f"tap={name},mac={mac},vhost={vhost}"),
        theirs={
            QEMU: (
                *("-netdev", f"tap,id={name},ifname={name},script=no,downscript=no,vhost={vhost}"),
                *("-device", f"virtio-net-pci,netdev={name},mac={mac},romfile=,{MODERN}"),
            )
        },
        backend=lambda place: tap(place.fill(name), f"10.{kind}.{place.number}.1"),
    )


DEVICES = {
    "blk": Device(
        ours=("--disk", "{place}/blk"),
        theirs={
            QEMU: _disk(),
            QEMU_IOTHREAD: (*("-object", "iothread,id=io"), *_disk(",iothread=io", ",file.aio=io_uring")),
        },
        backend=lambda place: image(f"{place.directory}/blk", BLK),
    ),
    "vhost_user_blk": Device(
        ours=("--disk", "vhost-user={place}/vhost-user-blk.sock"),
        theirs={
            QEMU: (
                *("-chardev", "socket,id=vhost-user-blk,path={place}/vhost-user-blk.sock"),
                *("-device", f"vhost-user-blk-pci,chardev=vhost-user-blk,{MODERN}"),
            )
        },
        backend=storage_daemon,
    ),
    "pmem": Device(
        ours=("--pmem", "{place}/pmem"),
        theirs={
            QEMU: (
                *("-object", f"memory-backend-file,id=pmem,mem-path={{place}}/pmem,size={PMEM}M,share=on"),
                *("-device", "virtio-pmem-pci,memdev=pmem"),
            )
        },
        backend=lambda place: image(f"{place.directory}/pmem", PMEM),
    ),
    "virtiofs": Device(
        ours=("--fs", "tag=bench,socket={place}/virtiofs.sock"),
        theirs={
            QEMU: (
                *("-chardev", "socket,id=virtiofs,path={place}/virtiofs.sock"),
                *("-device", "vhost-user-fs-pci,chardev=virtiofs,tag=bench"),
            )
        },
        backend=shared_file,
    ),
    "balloon": Device(
        ours=("--balloon", "on"),
        theirs={QEMU: ("-device", f"virtio-balloon-pci,free-page-reporting=on,{MODERN}")},
        backend=lambda place: nullcontext(),
    ),
    "net": _card(1, "off"),
    "vhost_net": _card(2, "on"),
}
