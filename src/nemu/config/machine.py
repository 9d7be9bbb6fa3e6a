"""What a machine is.

The metadata of each field is a Setting, which says how the setting is called, read and explained.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from nemu import syntax
from nemu.config.chardev import CONSOLE, SERIAL, ChardevConfig, ChardevReader
from nemu.config.command import CommandReader, variable
from nemu.config.cpus import MAX_CPUS, Cpus, CpusReader, HotplugReader, Memory, MemoryReader
from nemu.config.setting import Kind, Setting, setting

if TYPE_CHECKING:
    from nemu.config.balloon import BalloonConfig
    from nemu.config.disk import DiskConfig
    from nemu.config.fs import FsConfig
    from nemu.config.net import NetConfig
    from nemu.config.pmem import PmemConfig
    from nemu.config.port import PortConfig
    from nemu.config.vhost_user import VhostUserConfig
    from nemu.config.vsock import VsockConfig

MIB = syntax.MIB


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One virtual machine."""

    kernel: str = setting(
        "",
        Setting(
            "kernel",
            syntax.path,
            "PATH",
            "Linux kernel, a bzImage (vmlinuz) or an ELF vmlinux; without one nemu boots its own small guest",
            paths=True,
        ),
    )
    initrd: str = setting(
        "", Setting("initrd", syntax.path, "PATH", "initial RAM disk of the kernel", paths=True)
    )
    append: str = setting(
        "",
        Setting("append", syntax.text, "TEXT", "kernel command line; console=hvc0 is nemu's console"),
    )
    memory: Memory = setting(
        Memory(),
        Setting(
            "memory",
            MemoryReader(),
            "SIZE[,max=SIZE,slots=N]",
            "RAM such as 512M, 1.5G or 1T, a plain number is MiB; host memory is taken only as the guest "
            "touches it; with max and slots more can be plugged in (default: 512M)",
        ),
    )
    cpus: Cpus = setting(
        Cpus(),
        Setting(
            "cpus",
            CpusReader(),
            "N[,max=N]",
            f"number of CPUs, 1 to {MAX_CPUS}; up to max of them with those plugged in later (default: 1)",
        ),
    )
    hotplug: tuple[str, ...] = setting(
        ("auto",),
        Setting(
            "hotplug",
            HotplugReader(),
            "auto|none|KIND[,KIND]",
            "what can be plugged in while the guest runs, of cpu, memory and pci; auto is what --cpus and "
            "--memory leave room for (default: auto)",
        ),
    )
    irqchip: str = setting(
        "split",
        Setting(
            "irqchip",
            syntax.choice("split", "kernel"),
            "split|kernel",
            "split leaves only the local APICs to the host kernel, kernel the IOAPIC too (default: split)",
        ),
    )
    disks: tuple[DiskConfig, ...] = setting(
        (),
        Setting(
            "disk",
            Kind("disk", "DiskConfig"),
            "PATH[,readonly=on|off][,serial=TEXT][,queues=N][,format=raw|qcow2][,iops=N][,bps=SIZE]"
            "[,cache=writeback|writethrough][,bus=virtio|scsi[,scsi-id=N][,lun=N]]"
            "|vhost-user=SOCKET[,queues=N]",
            "virtio disk on a raw or qcow2 image, on a block device, or by vhost-user on the back end at "
            "SOCKET; with bus=scsi a disk of the one virtio SCSI controller; repeat for more; a comma in "
            "PATH is written twice",
            many=True,
            paths=True,
            device=True,
        ),
    )
    nets: tuple[NetConfig, ...] = setting(
        (),
        Setting(
            "net",
            Kind("net", "NetConfig"),
            "tap=NAME|fd=N|fds=N:N|user|vhost-user=SOCKET[,mac=ADDRESS][,queues=N][,vhost=on|off|auto]"
            "[,vhostfds=N:N][,forward=tcp|udp:[ADDRESS:]PORT:PORT]",
            "virtio network card on a tap, on one inherited as open descriptors, one a pair of queues, by "
            "passt, which needs no root and leads ports of this host to the guest's, or by vhost-user on the "
            "back end at SOCKET; repeat for more",
            many=True,
            path_keys=("vhost-user",),
            device=True,
        ),
    )
    vhost_users: tuple[VhostUserConfig, ...] = setting(
        (),
        Setting(
            "vhost-user",
            Kind("vhost_user", "VhostUserConfig"),
            "type=N,socket=SOCKET[,queues=N][,queue-size=N][,tag=TEXT]",
            "virtio device of any type (virtio 1.2, section 5) on the vhost-user back end at SOCKET; "
            "repeat for more",
            many=True,
            path_keys=("socket",),
            device=True,
        ),
    )
    filesystems: tuple[FsConfig, ...] = setting(
        (),
        Setting(
            "fs",
            Kind("fs", "FsConfig"),
            "tag=TAG,dir=DIR[,readonly=on|off][,cache=auto|always|never]|tag=TAG,socket=SOCKET",
            "virtio file system that the guest mounts as TAG (type virtiofs): the directory DIR, by a "
            "virtiofsd that nemu starts, or what the virtiofsd at SOCKET shares; repeat for more",
            many=True,
            path_keys=("dir", "socket"),
            device=True,
        ),
    )
    rng: bool = setting(
        True, Setting("rng", syntax.switch, "on|off", "virtio entropy device (default: on)", device=True)
    )
    pmems: tuple[PmemConfig, ...] = setting(
        (),
        Setting(
            "pmem",
            Kind("pmem", "PmemConfig"),
            "PATH[,readonly=on|off]",
            "persistent memory: a file of whole 2 MiB, mapped into the guest (/dev/pmem0, mount -o dax); "
            "repeat for more",
            many=True,
            paths=True,
            device=True,
        ),
    )
    balloon: BalloonConfig | None = setting(
        None,
        Setting(
            "balloon",
            Kind("balloon", "BalloonConfig"),
            "on|off|SIZE[,reporting=on|off][,deflate_on_oom=on|off][,statistics=SECONDS]",
            "virtio balloon: memory that is free in the guest goes back to the host (reporting), and SIZE of "
            "it from the start (default: off)",
            device=True,
        ),
    )
    watchdog: str = setting(
        "off",
        Setting(
            "watchdog",
            syntax.choice("off", "reset", "poweroff", "panic", "pause", "none"),
            "off|reset|poweroff|panic|pause|none",
            "a watchdog, and what happens when the guest does not feed it; panic ends nemu with status 3, "
            "pause waits for a QMP client (cont), none is only a line (default: off)",
        ),
    )
    cloud_init: str = setting(
        "",
        Setting(
            "cloud-init",
            syntax.path,
            "DIR",
            "a seed for cloud-init (NoCloud), made of DIR's user-data, meta-data, network-config and "
            "vendor-data, as one more read-only disk",
            paths=True,
            device=True,
        ),
    )
    vsock: VsockConfig | None = setting(
        None,
        Setting(
            "vsock",
            Kind("vsock", "VsockConfig"),
            "cid=N[,socket=PATH|,vhostfd=N]",
            "virtio socket device with the guest's address N, of the host kernel (AF_VSOCK) or behind a Unix "
            "socket",
            path_keys=("socket",),
            device=True,
        ),
    )
    console: ChardevConfig = setting(
        ChardevConfig("stdio"),
        Setting(
            "console",
            ChardevReader(CONSOLE),
            CONSOLE,
            "where the virtio console (hvc0) goes; on a terminal Ctrl-A X leaves (default: stdio)",
            paths=True,
        ),
    )
    ports: tuple[PortConfig, ...] = setting(
        (),
        Setting(
            "port",
            Kind("port", "PortConfig"),
            "name=NAME,socket=PATH|file=PATH|stdio",
            "virtio port for a program in the guest, such as an agent, which opens /dev/virtio-ports/NAME; "
            "repeat for more",
            many=True,
            path_keys=("socket", "file"),
        ),
    )
    serial: ChardevConfig = setting(
        ChardevConfig("off"),
        Setting(
            "serial",
            ChardevReader(SERIAL),
            SERIAL,
            "a 16550 UART at port 0x3f8 (ttyS0) as well, slow, for early debugging (default: off)",
            paths=True,
        ),
    )

    command: tuple[str, ...] = setting(
        (),
        Setting(
            "command",
            CommandReader(),
            "COMMAND...",
            "run COMMAND in a throwaway guest whose root is this host's; nemu's exit status is the command's",
            words=True,
        ),
    )
    root: str = setting(
        "",
        Setting(
            "root", syntax.path, "DIR", "the command's root directory (default: this host's, /)", paths=True
        ),
    )
    rw: bool = setting(
        False,
        Setting(
            "rw",
            syntax.switch,
            "on|off",
            "let the command write to that directory; else what it writes goes with the guest (default: off)",
            flag=True,
        ),
    )
    directory: str = setting(  # "": settled from where nemu is run
        "",
        Setting("cwd", syntax.path, "DIR", "the command's directory in its root (default: the current one)"),
    )
    env: tuple[str, ...] = setting(
        (),
        Setting(
            "env",
            variable,
            "NAME[=VALUE]",
            "a variable of the command's environment besides PATH, HOME, TERM, LANG and their like; without "
            "=VALUE it is passed on; repeat for more",
            many=True,
        ),
    )

    def can_plug(self, kind: str) -> bool:
        """Whether things of ``kind`` ("cpu", "memory", "pci") come and go in this machine."""
        if self.hotplug != ("auto",):
            return kind in self.hotplug
        room = {"cpu": self.cpus.maximum > self.cpus.present, "memory": self.memory.slots > 0}
        return room.get(kind, False)

    def to_json(self) -> str:
        """The machine as JSON text that ``from_json`` reads back to an equal one."""
        import json

        return json.dumps({item.name: _plain(getattr(self, item.name)) for item in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> MachineConfig:
        """The inverse of ``to_json``; ValueError for anything that it did not write."""
        import json

        try:
            values = json.loads(text)
            for item in fields(cls):
                how: Setting = item.metadata["setting"]
                given = values[item.name]
                if given is not None or item.default is not None:
                    load = getattr(how.read, "load", lambda value: value)
                    values[item.name] = tuple(map(load, given)) if how.many else load(given)
            return cls(**values)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"not a machine that nemu wrote ({error})") from None


def _plain(value: Any) -> Any:
    """``value`` with named tuples as mappings, as ``Kind.load`` takes them."""
    if isinstance(value, tuple):
        return value._asdict() if hasattr(value, "_asdict") else [_plain(one) for one in value]
    return value
