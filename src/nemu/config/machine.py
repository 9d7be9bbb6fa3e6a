"""What a machine is (MachineConfig) and how this run goes (RunOptions).

The metadata of each field is a Setting, which says how the setting is called, read and explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from nemu import syntax
from nemu.config.chardev import CONSOLE, SERIAL, ChardevConfig, ChardevReader
from nemu.config.setting import Given, Kind, Setting, setting
from nemu.errors import ConfigError

if TYPE_CHECKING:
    from nemu.config.disk import DiskConfig
    from nemu.config.net import NetConfig
    from nemu.config.vhost_user import VhostUserConfig
    from nemu.config.vsock import VsockConfig

MIB = syntax.MIB
MAX_CPUS = 255  # xAPIC ids
MIN_MEMORY = 64 * MIB
MAX_MEMORY = 1 << 51  # what 52 physical address bits reach leaves room for devices above


def _memory(value: object) -> int:
    size = syntax.size(value)
    if size < MIN_MEMORY or size > MAX_MEMORY or size % MIB:
        low, high = syntax.show_size(MIN_MEMORY), syntax.show_size(MAX_MEMORY)
        raise ValueError(f"must be {low} to {high}, in whole MiB (a plain number is MiB)")
    return size


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
    memory: int = setting(  # bytes, a multiple of 1 MiB
        512 * MIB,
        Setting(
            "memory",
            _memory,
            "SIZE",
            "RAM such as 512M, 1.5G or 1T, a plain number is MiB; host memory is taken only as the guest "
            "touches it (default: 512M)",
        ),
    )
    cpus: int = setting(
        1, Setting("cpus", syntax.integer(1, MAX_CPUS), "N", f"number of CPUs, 1 to {MAX_CPUS} (default: 1)")
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
            "|vhost-user=SOCKET[,queues=N]",
            "virtio disk on a raw or qcow2 image, on a block device, or by vhost-user on the back end at "
            "SOCKET; repeat for more; a comma in PATH is written twice",
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
            "type=N,socket=SOCKET[,queues=N][,queue-size=N]",
            "virtio device of any type (virtio 1.2, section 5) on the vhost-user back end at SOCKET; "
            "repeat for more",
            many=True,
            path_keys=("socket",),
            device=True,
        ),
    )
    rng: bool = setting(
        True, Setting("rng", syntax.switch, "on|off", "virtio entropy device (default: on)", device=True)
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
                if load := getattr(how.read, "load", None):
                    given = values[item.name]
                    if given is not None or item.default is not None:
                        values[item.name] = tuple(map(load, given)) if how.many else load(given)
            return cls(**values)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"not a machine that nemu wrote ({error})") from None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How ``nemu run`` runs a machine."""

    timeout: float = setting(  # seconds; 0: none
        0.0,
        Setting("timeout", syntax.seconds, "SECONDS", "stop the guest after that time with exit status 4"),
    )
    report: str = setting(
        "",
        Setting("report", syntax.path, "FILE", "write times, exits, memory and devices as JSON", paths=True),
    )
    host: str = setting(
        "auto",
        Setting(
            "host",
            syntax.choice("auto", "native", "emulated"),
            "auto|native|emulated",
            "auto takes KVM where it is there and fast, else an emulated host (default: auto)",
        ),
    )


def settings() -> Iterator[Setting]:
    """Every setting, in the order in which help lists them."""
    for cls in (MachineConfig, RunOptions):
        for item in fields(cls):
            yield item.metadata["setting"]


def assemble(given: Mapping[str, Given]) -> tuple[MachineConfig, RunOptions]:
    """The machine and the options out of values by option name (a list of values where ``many``).

    Raises ConfigError for the first value that cannot be read.
    """
    return MachineConfig(**_read(MachineConfig, given)), RunOptions(**_read(RunOptions, given))


def _read(cls: type[MachineConfig] | type[RunOptions], given: Mapping[str, Given]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(cls):
        how: Setting = item.metadata["setting"]
        if how.option not in given:
            continue
        label, value = given[how.option]
        if how.many:
            values[item.name] = tuple(_read_one(how, label, one) for one in value)
        else:
            values[item.name] = _read_one(how, label, value)
    return values


def _read_one(how: Setting, label: str, value: object) -> Any:
    try:
        return how.read(value)
    except ValueError as error:
        shown = str(value) if len(str(value)) <= 80 else f"{str(value)[:77]}..."
        raise ConfigError(label, shown or "''", str(error)) from None


def _plain(value: Any) -> Any:
    """``value`` with named tuples as mappings, as ``Kind.load`` takes them."""
    if isinstance(value, tuple):
        return value._asdict() if hasattr(value, "_asdict") else [_plain(one) for one in value]
    return value
