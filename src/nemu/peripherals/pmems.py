"""``--pmem``: virtio-pmem on files that are mapped into the guest."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from nemu import sigbus
from nemu.backends.disk import Disk
from nemu.backends.filewatch import FileWatch
from nemu.config.pmem import ALIGNMENT
from nemu.errors import ConfigError, HostError
from nemu.memory import map_image
from nemu.peripherals.kind import Peripheral, Run
from nemu.virtio.pmem import VirtioPmem

if TYPE_CHECKING:
    from nemu.machine import Machine
    from nemu.virtio.device import VirtioDevice


class Pmem(Peripheral):
    """One persistent memory."""

    PREFIX = "virtio-pmem"

    def _open(self, run: Run) -> None:
        self._machine: Machine | None = None
        self._watch: FileWatch | None = None
        config = self._config
        self._disk = disk = self._keep(Disk(config.path, config.readonly, "--pmem"))
        if disk.size % ALIGNMENT:
            problem = f"has {disk.size} bytes, must be whole {ALIGNMENT >> 20} MiB"
            raise ConfigError("--pmem", disk.path, problem)
        self._watch = self._keep(FileWatch([disk.fd]))
        run.loop.add_reader(self._watch.fileno(), self._changed)

    def device(self, machine: Machine) -> VirtioDevice:
        self._machine = machine
        gpa = _map(self._disk, machine)
        return VirtioPmem(self.name, self._disk, gpa, machine.lock, machine.loop)

    def drain(self) -> None:
        self._machine = None
        self._disk.drain()

    def close(self) -> None:
        if self._watch:
            self._loop.remove_reader(self._watch.fileno())
            self._watch = None
        super().close()

    def _changed(self) -> None:
        """Others have written to the file, or made it shorter.

        A guest that touches what is gone would hang: KVM has it wait for the page (an asynchronous page
        fault), for ever.
        """
        assert self._watch
        self._watch.clear()
        try:
            _check(self._disk)
        except HostError as error:
            if self._machine:
                self._machine.fail(error)


def _map(disk: Disk, machine: Machine) -> int:
    """Make ``disk`` memory of ``machine``; its guest-physical address."""
    _check(disk)
    try:
        gpa = machine.device_memory.allocate(disk.size)
    except ValueError as error:
        raise ConfigError("--pmem", disk.path, str(error)) from None
    try:
        mapping = map_image(disk.fd, disk.size, readonly=disk.readonly)
    except OSError as error:
        raise HostError(f"--pmem {disk.path}: cannot map it: {error.strerror}") from error
    region = machine.ram.add(gpa, mapping, disk.fd, readonly=disk.readonly)
    # Writes to a read-only one leave the guest and go nowhere.
    machine.slots.add_region(region, readonly=disk.readonly)
    sigbus.guard(
        region.host_address, region.size, partial(machine.loop.call_soon, partial(_lost, disk, machine))
    )
    machine.at_close.append(partial(sigbus.release, region.host_address))
    machine.checks.append(partial(_check, disk))
    return gpa


def _lost(disk: Disk, machine: Machine) -> None:
    machine.fail(
        HostError(f"--pmem {disk.path}: cannot be read or written any more (is its file system full?)")
    )


def _check(disk: Disk) -> None:
    """HostError if ``disk`` is why the host could not give memory to the guest."""
    size = os.lseek(disk.fd, 0, os.SEEK_END)
    if size < disk.size:
        raise HostError(
            f"--pmem {disk.path}: became shorter while it was in use ({size} bytes left of {disk.size})"
        )
