"""The command lines of the machines that are compared: ours, QEMU microvm and QEMU q35.

Each has one CPU, 256 MiB, a virtio console, disk, network card and entropy device, the same
kernel, initrd and command line, and no legacy device that its machine can do without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

MEMORY = 256  # MiB
COMMAND = "import sys; from nemu.cli import main; sys.exit(main())"  # what the script ``nemu`` does
MODERN = "disable-legacy=on"


class Guest(NamedTuple):
    """What is booted: paths, the kernel's command line, and the host side of disk and network."""

    kernel: str
    initrd: str
    append: str
    disk: str
    tap: str


def nemu(guest: Guest) -> list[str]:
    return [*our_machine(guest[:3], MEMORY), "--disk", guest.disk, "--net", f"tap={guest.tap}"]


def microvm(guest: Guest) -> list[str]:
    """virtio-mmio: it boots sooner and exits less than with ``pcie=on``."""
    return [
        *_qemu(guest[:3], MEMORY),
        *("-M", "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"),
        *_backends(guest),
        *("-device", "virtio-blk-device,drive=disk", "-device", "virtio-net-device,netdev=net"),
        *("-device", "virtio-rng-device,rng=rng"),
    ]


def q35(guest: Guest) -> list[str]:
    return [
        *q35_machine(guest[:3], MEMORY),
        *_backends(guest),
        *("-device", f"virtio-blk-pci,drive=disk,{MODERN}"),
        *("-device", f"virtio-net-pci,netdev=net,romfile=,{MODERN}"),
    ]


def our_machine(boot: Sequence[str], memory: int) -> list[str]:
    """Without disk and network; ``boot`` is kernel, initrd and command line, ``memory`` in MiB."""
    kernel, initrd, append = boot
    return [
        *(sys.executable, "-c", COMMAND, "run", "--host", "native"),
        *("--kernel", kernel, "--initrd", initrd, "--append", append, "--memory", f"{memory}M"),
    ]


def q35_machine(boot: Sequence[str], memory: int, machine: str = "") -> list[str]:
    """The same of QEMU's; ``machine`` are more options of its board."""
    return [
        *_qemu(boot, memory),
        *("-M", f"q35,sata=off,smbus=off,i8042=off,vmport=off,hpet=off{machine}"),
        *("-device", f"virtio-serial-pci,{MODERN}", "-device", "virtconsole,chardev=console"),
        *("-device", f"virtio-rng-pci,rng=rng,{MODERN}"),
    ]


def _qemu(boot: Sequence[str], memory: int) -> list[str]:
    kernel, initrd, append = boot
    return [
        *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-chardev", "stdio,id=console"),
        *("-kernel", kernel, "-initrd", initrd, "-append", append),
        *("-object", "rng-random,id=rng,filename=/dev/urandom"),
    ]


def _backends(guest: Guest) -> list[str]:
    return [
        *("-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={guest.disk}"),
        *("-netdev", f"tap,id=net,ifname={guest.tap},script=no,downscript=no"),
    ]


OURS = "nemu"
MACHINES: dict[str, Callable[[Guest], list[str]]] = {OURS: nemu, "microvm": microvm, "q35": q35}
ABOUT = {
    OURS: "virt: split irqchip, virtio over PCIe, kernel started by PVH",
    "microvm": "QEMU -M microvm, qboot, ACPI, no PIC, PIT, RTC or UART, modern virtio over MMIO",
    "q35": "QEMU -M q35, SeaBIOS, no SATA, SMBus, i8042, vmport or HPET, modern virtio over PCIe",
}
