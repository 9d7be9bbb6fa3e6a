"""Directories of this machine, live in the emulated host: one vhost-user-fs device that is plugged into it.

All of them are numbered directories of one file system, whose virtiofsd runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nemu.backends import mounts
from nemu.backends.virtiofsd import daemon
from nemu.host.emulated import wire
from nemu.host.emulated.qemu import Qemu
from nemu.host.emulated.template import SHARED_BUS
from nemu.vhost.user.endpoint import PrivateListener

TAG = "shared"
QUEUE_SIZE = 1024


class SharedDirectories:
    """Starts virtiofsd for ``directories``, (path, whether read-only), and plugs it into ``qemu``.

    ``pump`` moves on what the daemon says.  Raises HostError.
    """

    def __init__(self, qemu: Qemu, pump: wire.Pump, directories: Sequence[tuple[str, bool]]) -> None:
        listener = PrivateListener()
        try:
            show = partial(mounts.show_numbered, directories)
            self._child = daemon("shared directories", show, "auto", listener.fd, _Watcher(pump))
            self._child.start()
            try:
                with listener.connect() as connection:
                    qemu.hand_over(TAG, connection.fileno())
                self._plug(qemu)
            except BaseException:
                self._child.close()
                raise
        finally:
            listener.close()

    @staticmethod
    def _plug(qemu: Qemu) -> None:
        address = {"type": "fd", "data": {"str": TAG}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        qemu.execute("chardev-add", id=TAG, backend=backend)
        qemu.execute(
            "device_add",
            driver="vhost-user-fs-pci",
            id=TAG,
            bus=SHARED_BUS,
            chardev=TAG,
            tag=TAG,
            **{"queue-size": QUEUE_SIZE},
        )

    def close(self) -> None:
        self._child.close()


class _Watcher:
    """As much of an event loop as a Child needs, on the pump."""

    def __init__(self, pump: wire.Pump) -> None:
        self._watched = pump.watched

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._watched[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self._watched.pop(fd, None)
