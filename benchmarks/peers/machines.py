"""The command lines of the machines that are compared: ours, QEMU microvm and QEMU q35.

Each has one CPU, 256 MiB, a virtio console, disk, network card and entropy device, the same
kernel, initrd and command line, and no legacy device that its machine can do without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

MEMORY = 256  # MiB
COMMAND = "import sys; from nemu.cli import main; sys.exit(main())"  # what the script ``nemu`` does


class Guest(NamedTuple):
    """What is booted: paths, the kernel's command line, and the host side of disk and network."""

    kernel: str
    initrd: str
    append: str
    disk: str
    tap: str


def nemu(guest: Guest) -> list[str]:
    return [
        *(sys.executable, "-c", COMMAND, "run", "--host", "native"),
        *("--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.append),
        *("--memory", f"{MEMORY}M", "--disk", guest.disk, "--net", f"tap={guest.tap}"),
    ]


def microvm(guest: Guest) -> list[str]:
    """virtio-mmio: it boots sooner and exits less than with ``pcie=on``."""
    return [
        *_qemu(guest),
        *("-M", "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"),
        *("-device", "virtio-blk-device,drive=disk", "-device", "virtio-net-device,netdev=net"),
        *("-device", "virtio-rng-device,rng=rng"),
    ]


def q35(guest: Guest) -> list[str]:
    modern = "disable-legacy=on"
    return [
        *_qemu(guest),
        *("-M", "q35,sata=off,smbus=off,i8042=off,vmport=off,hpet=off"),
        *("-device", f"virtio-serial-pci,{modern}", "-device", "virtconsole,chardev=console"),
        *("-device", f"virtio-blk-pci,drive=disk,{modern}"),
        *("-device", f"virtio-net-pci,netdev=net,romfile=,{modern}"),
        *("-device", f"virtio-rng-pci,rng=rng,{modern}"),
    ]


def _qemu(guest: Guest) -> list[str]:
    return [
        *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(MEMORY)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-chardev", "stdio,id=console"),
        *("-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.append),
        *("-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={guest.disk}"),
        *("-netdev", f"tap,id=net,ifname={guest.tap},script=no,downscript=no"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom"),
    ]


OURS = "nemu"
MACHINES: dict[str, Callable[[Guest], list[str]]] = {OURS: nemu, "microvm": microvm, "q35": q35}
ABOUT = {
    OURS: "virt: split irqchip, virtio over PCIe, kernel started by PVH",
    "microvm": "QEMU -M microvm, qboot, ACPI, no PIC, PIT, RTC or UART, modern virtio over MMIO",
    "q35": "QEMU -M q35, SeaBIOS, no SATA, SMBus, i8042, vmport or HPET, modern virtio over PCIe",
}
