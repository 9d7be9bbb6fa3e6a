"""What a machine is (MachineConfig) and how this run goes (RunOptions), as frozen dataclasses.

One description serves the command line, the configuration file and the emulated host: the
metadata of each field is a Setting, which says how the setting is called, read and explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from nemu import syntax
from nemu.errors import ConfigError

MIB = syntax.MIB
SERIAL_MAX = 20  # bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
QUEUES_MAX = 16
MAX_CPUS = 255  # xAPIC ids
MIN_MEMORY = 64 * MIB
MAX_MEMORY = 1 << 51  # what 52 physical address bits reach leaves room for devices above
TAP_NAME_MAX = 15  # IFNAMSIZ less the terminator


class Setting(NamedTuple):
    """How one field is set.  ``read`` raises ValueError with what would be right."""

    option: str  # without dashes; the key in a configuration file
    read: Callable[[Any], Any]
    metavar: str  # "a|b": the words to choose from
    help: str
    many: bool = False
    paths: bool = False  # names files: relative ones in a configuration file start at its folder


class Given(NamedTuple):
    """A value as somebody wrote it; ``label`` says where: ``--memory`` or ``vm.toml: memory``."""

    label: str
    value: Any


def _set(default: Any, setting: Setting) -> Any:
    return field(default=default, metadata={"setting": setting})


def _memory(value: object) -> int:
    size = syntax.size(value)
    if size < MIN_MEMORY or size > MAX_MEMORY or size % MIB:
        low, high = syntax.show_size(MIN_MEMORY), syntax.show_size(MAX_MEMORY)
        raise ValueError(f"must be {low} to {high}, in whole MiB (a plain number is MiB)")
    return size


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A virtio-blk disk on a raw image or a block device."""

    path: str
    readonly: bool = False
    serial: str = ""  # at most 20 bytes of ASCII (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
    queues: int = 0  # 0: one for each CPU, at most 4

    @classmethod
    def read(cls, value: object) -> DiskConfig:
        """From ``PATH[,readonly=on|off][,serial=TEXT][,queues=N]`` or a table with these keys."""
        if isinstance(value, str):
            path, *rest = syntax.properties(value)
            value = {"path": path, **_pairs(rest)}
        return cls(
            **_table(
                value,
                path=syntax.path,
                readonly=syntax.switch,
                serial=_serial,
                queues=syntax.integer(1, QUEUES_MAX),
            )
        )


@dataclass(frozen=True, slots=True)
class NetConfig:
    """A virtio-net device.  ``backend`` is "tap", "fd" (an open tap) or "user" (passt)."""

    backend: str
    tap: str = ""
    fd: int = -1
    mac: str = ""  # "": a stable locally administered address, different for each device

    @classmethod
    def read(cls, value: object) -> NetConfig:
        """From ``tap=NAME|fd=N|user[,mac=ADDRESS]`` or a table with these keys (``user = true``)."""
        if isinstance(value, str):
            parts = syntax.properties(value)
            if parts[0].partition("=")[0] not in ("tap", "fd", "user"):
                raise ValueError("must be tap=NAME, fd=N or user")
            value = _pairs("user=on" if part == "user" else part for part in parts)
        table = _table(
            value, tap=_tap_name, fd=syntax.integer(0, 1 << 20), user=syntax.switch, mac=syntax.mac_address
        )
        if not table.pop("user", True):
            raise ValueError("user can only be on")
        backends = {"tap", "fd", "user"} & set(value if isinstance(value, Mapping) else ())
        if len(backends) != 1:
            raise ValueError("must be tap=NAME, fd=N or user")
        return cls(backend=backends.pop(), **table)


@dataclass(frozen=True, slots=True)
class ChardevConfig:
    """Where a console's bytes go: "stdio", "null", "file", "socket" (a listening Unix socket) or "off"."""

    kind: str
    path: str = ""

    @classmethod
    def reader(cls, metavar: str) -> Callable[[object], ChardevConfig]:
        """A reader of the forms in ``metavar``, such as ``off|stdio|file=PATH``."""
        forms = metavar.split("|")

        def read(value: object) -> ChardevConfig:
            kind, equals, path = syntax.text(value).partition("=")
            if (f"{kind}=PATH" if equals else kind) not in forms or (equals and not path):
                raise ValueError(f"must be {syntax.either(forms)}")
            return cls(kind, path)

        return read


_CONSOLE = "stdio|null|file=PATH|socket=PATH"
_SERIAL = "off|stdio|file=PATH"


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One virtual machine."""

    kernel: str = _set(
        "",
        Setting(
            "kernel",
            syntax.path,
            "PATH",
            "Linux kernel, a bzImage (vmlinuz) or an ELF vmlinux; without one nemu boots its own small guest",
            paths=True,
        ),
    )
    initrd: str = _set(
        "", Setting("initrd", syntax.path, "PATH", "initial RAM disk of the kernel", paths=True)
    )
    append: str = _set(
        "",
        Setting("append", syntax.text, "TEXT", "kernel command line; console=hvc0 is nemu's console"),
    )
    memory: int = _set(  # bytes, a multiple of 1 MiB
        512 * MIB,
        Setting(
            "memory",
            _memory,
            "SIZE",
            "RAM such as 512M, 1.5G or 1T, a plain number is MiB; host memory is taken only as the guest "
            "touches it (default: 512M)",
        ),
    )
    cpus: int = _set(
        1, Setting("cpus", syntax.integer(1, MAX_CPUS), "N", f"number of CPUs, 1 to {MAX_CPUS} (default: 1)")
    )
    irqchip: str = _set(
        "split",
        Setting(
            "irqchip",
            syntax.choice("split", "kernel"),
            "split|kernel",
            "split leaves only the local APICs to the host kernel, kernel the IOAPIC too (default: split)",
        ),
    )
    disks: tuple[DiskConfig, ...] = _set(
        (),
        Setting(
            "disk",
            DiskConfig.read,
            "PATH[,readonly=on|off][,serial=TEXT][,queues=N]",
            "virtio disk on a raw image or a block device; repeat for more; a comma in PATH is written twice",
            many=True,
            paths=True,
        ),
    )
    nets: tuple[NetConfig, ...] = _set(
        (),
        Setting(
            "net",
            NetConfig.read,
            "tap=NAME|fd=N|user[,mac=ADDRESS]",
            "virtio network card on a tap, on an open tap inherited as descriptor N, or by passt, which "
            "needs no root; repeat for more",
            many=True,
        ),
    )
    rng: bool = _set(True, Setting("rng", syntax.switch, "on|off", "virtio entropy device (default: on)"))
    console: ChardevConfig = _set(
        ChardevConfig("stdio"),
        Setting(
            "console",
            ChardevConfig.reader(_CONSOLE),
            _CONSOLE,
            "where the virtio console (hvc0) goes; on a terminal Ctrl-A X leaves (default: stdio)",
            paths=True,
        ),
    )
    serial: ChardevConfig = _set(
        ChardevConfig("off"),
        Setting(
            "serial",
            ChardevConfig.reader(_SERIAL),
            _SERIAL,
            "a 16550 UART at port 0x3f8 (ttyS0) as well, slow, for early debugging (default: off)",
            paths=True,
        ),
    )

    def to_json(self) -> str:
        """The machine as JSON text that ``from_json`` reads back to an equal one."""
        import json
        from dataclasses import asdict

        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MachineConfig:
        """The inverse of ``to_json``; ValueError for anything that it did not write."""
        import json

        try:
            values = json.loads(text)
            values["disks"] = tuple(DiskConfig(**disk) for disk in values["disks"])
            values["nets"] = tuple(NetConfig(**net) for net in values["nets"])
            values["console"] = ChardevConfig(**values["console"])
            values["serial"] = ChardevConfig(**values["serial"])
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"not a machine that nemu wrote ({error})") from None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How ``nemu run`` runs a machine."""

    timeout: float = _set(  # seconds; 0: none
        0.0,
        Setting("timeout", syntax.seconds, "SECONDS", "stop the guest after that time with exit status 4"),
    )
    report: str = _set(
        "",
        Setting("report", syntax.path, "FILE", "write times, exits, memory and devices as JSON", paths=True),
    )
    host: str = _set(
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
        setting: Setting = item.metadata["setting"]
        if setting.option not in given:
            continue
        label, value = given[setting.option]
        if setting.many:
            values[item.name] = tuple(_read_one(setting, label, one) for one in value)
        else:
            values[item.name] = _read_one(setting, label, value)
    return values


def _read_one(setting: Setting, label: str, value: object) -> Any:
    try:
        return setting.read(value)
    except ValueError as error:
        shown = str(value) if len(str(value)) <= 80 else f"{str(value)[:77]}..."
        raise ConfigError(label, shown or "''", str(error)) from None


def _pairs(parts: Any) -> dict[str, str]:
    table: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' must be KEY=VALUE")
        if key in table:
            raise ValueError(f"{key} is given twice")
        table[key] = value
    return table


def _table(value: object, **readers: Callable[[Any], Any]) -> dict[str, Any]:
    """``value``, a mapping with some of the keys of ``readers``, each read by its reader."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be text or a table with {syntax.either(list(readers))}")
    read: dict[str, Any] = {}
    for key, one in value.items():
        if key not in readers:
            hint = syntax.nearest(key, list(readers)) or f"; known are {', '.join(readers)}"
            raise ValueError(f"unknown key {key}{hint}")
        try:
            read[key] = readers[key](one)
        except ValueError as error:
            raise ValueError(str(error) if key in str(error) else f"{key} {error}") from None
    if "path" in readers and "path" not in read:
        raise ValueError("needs a path")
    return read


def _serial(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII")
    if len(value) > SERIAL_MAX:
        raise ValueError(f"must have at most {SERIAL_MAX} characters")
    return value


def _tap_name(value: object) -> str:
    name = syntax.text(value)
    if not 1 <= len(name.encode()) <= TAP_NAME_MAX or "/" in name or any(c.isspace() for c in name):
        raise ValueError(f"must be an interface name of 1 to {TAP_NAME_MAX} bytes")
    return name
