"""Configuration -> Machine, from top to bottom; the only module that knows every concrete part."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nemu.arch.x86_64.board import Board
from nemu.bus.address_space import AddressSpace
from nemu.kvm.handles import System
from nemu.kvm.slots import HostPages, MemorySlots
from nemu.kvm.vcpu import VcpuThread
from nemu.machine import Machine
from nemu.memory import DeviceMemory, GuestRam
from nemu.pci.host import BUS_SIZE, HostBridge
from nemu.plug.memory import DimmSlots
from nemu.plug.pci import PciSlots
from nemu.virtio.pci import PAGES_SIZE, VirtioPci

if TYPE_CHECKING:
    from nemu.config import MachineConfig
    from nemu.loop import Loop
    from nemu.plug.inventory import Inventory
    from nemu.virtio.device import VirtioDevice


def build(config: MachineConfig, inventory: Inventory, lock: threading.RLock, loop: Loop) -> Machine:
    """A machine as after power-on, ready to run.  Raises ConfigError and HostError, with nothing left."""
    machine = Machine(lock, loop)
    try:
        _assemble(machine, config, inventory)
    except BaseException:
        machine.close()
        raise
    return machine


def _assemble(machine: Machine, config: MachineConfig, inventory: Inventory) -> None:
    peripherals = inventory.peripherals
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

    bus = machine.memory_bus = AddressSpace(slots, board.reserved, board.physical_bits)
    ports = machine.port_bus = AddressSpace(bits=16)
    machine.cpus = board.create_cpus(
        vm,
        lambda index, vcpu: VcpuThread(
            index, vcpu, memory_bus=bus, port_bus=ports, lock=machine.lock, failed=machine.fail
        ),
    )
    host = HostBridge(bus, HostPages(BUS_SIZE), board.ecam, board.ecam_size, board.apertures)

    def put(device: VirtioDevice, slot: int) -> VirtioPci:
        return VirtioPci(
            device, host, slot, pages=HostPages(PAGES_SIZE), memory=ram, loop=machine.loop, router=router
        )

    machine.dimms = DimmSlots(machine, config.memory.slots, config.memory.maximum - config.memory.size)
    machine.pci = PciSlots(machine, host, put)
    at_close(machine.pci.close)
    board.add_devices(vm, slots, bus, ports, peripherals.serial)
    if peripherals.watchdog:
        board.add_watchdog(bus, peripherals.watchdog)
    machine.pci_functions = host.describe
    first = inventory.enter(machine)

    slots.drop_writes((board.ecam + register for register in host.inert_registers()), width=4)

    board.boot(ram, first, peripherals.initramfs)
