"""Configuration -> Machine, from top to bottom; the only module that knows every concrete part."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nemu.arch.x86_64.board import Board
from nemu.bus.address_space import AddressSpace
from nemu.errors import ConfigError
from nemu.kvm.handles import System
from nemu.kvm.slots import HostPages, MemorySlots
from nemu.kvm.vcpu import VcpuThread
from nemu.machine import Machine
from nemu.memory import DeviceMemory, GuestRam
from nemu.pci.host import BUS_SIZE, HostBridge
from nemu.virtio.pci import PAGES_SIZE, VirtioPci

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.loop import Loop
    from nemu.peripherals import Peripherals


def build(config: MachineConfig, peripherals: Peripherals, lock: threading.RLock, loop: Loop) -> Machine:
    """A machine as after power-on, ready to run.  Raises ConfigError and HostError, with nothing left."""
    machine = Machine(lock, loop)
    try:
        _assemble(machine, config, peripherals)
    except BaseException:
        machine.close()
        raise
    return machine


def _assemble(machine: Machine, config: MachineConfig, peripherals: Peripherals) -> None:
    at_close = machine.at_close.append
    system = System()
    at_close(system.close)
    board = Board(machine, config, system)
    vm = system.create_vm()
    at_close(vm.close)

    ram = machine.ram = GuestRam(board.ram_regions)
    at_close(ram.close)
    slots = machine.slots = MemorySlots(vm)
    slots.add_ram(ram)
    machine.device_memory = DeviceMemory(*board.device_memory)
    router = board.create_irqchip(vm)
    vcpus = board.create_vcpus(vm)

    bus = machine.memory_bus = AddressSpace(slots, board.reserved, board.physical_bits)
    ports = machine.port_bus = AddressSpace(bits=16)
    board.add_devices(vm, slots, bus, ports, peripherals.serial)
    if peripherals.watchdog:
        board.add_watchdog(bus, peripherals.watchdog)
    host = HostBridge(bus, HostPages(BUS_SIZE), board.ecam, board.ecam_size, board.apertures)
    machine.pci_functions = host.describe
    for device in peripherals.devices(machine):
        slot = host.free_slot()
        if slot is None:
            raise ConfigError(device.name, "", "has no free slot: a machine has room for 31 devices in all")
        transport = VirtioPci(
            device,
            host,
            slot,
            pages=HostPages(PAGES_SIZE),
            memory=ram,
            loop=machine.loop,
            router=router,
        )
        at_close(transport.close)
        machine.devices.append((device.name, f"0000:00:{slot:02x}.0"))

    slots.drop_writes((board.ecam + register for register in host.inert_registers()), width=4)

    board.boot(ram, vcpus[0], peripherals.initramfs)
    for index, vcpu in enumerate(vcpus):
        machine.vcpus.append(
            VcpuThread(index, vcpu, memory_bus=bus, port_bus=ports, lock=machine.lock, failed=machine.fail)
        )
