"""What the machine is: its kind, CPUs and memory."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any, NamedTuple

from nemu.plug.inventory import AT_START, PLUGGED
from nemu.qmp.errors import QmpError
from nemu.qmp.registry import Call, command

MACHINE = "virt"
CPU_MODEL = "host"
CPU_TYPE = "host-x86_64-cpu"
CPU_PATH = AT_START


class Accelerator(Enum):
    KVM = "kvm"


class Architecture(Enum):
    """SysEmuTarget."""

    X86_64 = "x86_64"


class KvmInfo(NamedTuple):
    enabled: Annotated[bool, "it is used"]
    present: Annotated[bool, "it is there"]


class AcceleratorInfo(NamedTuple):
    enabled: Annotated[Accelerator, "what runs the guest"]
    present: Annotated[list[Accelerator], "what could"]


class TargetInfo(NamedTuple):
    arch: Annotated[Architecture, "the guest's architecture"]


class MachineInfo(NamedTuple):
    name: Annotated[str, "the kind"]
    cpu_max: Annotated[int, "the most CPUs"]
    hotpluggable_cpus: Annotated[bool, "CPUs can come and go"]
    numa_mem_supported: Annotated[bool, "-numa node,mem=; no"]
    deprecated: Annotated[bool, "it will go away"]
    acpi: Annotated[bool, "it has ACPI"]
    is_default: Annotated[bool | None, "it is the one that a machine is without a word"] = None
    default_cpu_type: Annotated[str | None, "the type of its CPUs"] = None


class CpuProperties(NamedTuple):
    """CpuInstanceProperties: where a CPU is."""

    socket_id: Annotated[int, "package"]
    core_id: Annotated[int, "core in it"]
    thread_id: Annotated[int, "thread in that"]


class CpuInfo(NamedTuple):
    cpu_index: Annotated[int, "its number"]
    qom_path: Annotated[str, "its object"]
    thread_id: Annotated[int, "the host's thread that runs it"]
    props: Annotated[CpuProperties, "where it is"]
    target: Annotated[Architecture, "its architecture"]


class HotpluggableCpu(NamedTuple):
    type: Annotated[str, "the driver for device_add"]
    vcpus_count: Annotated[int, "CPUs that come with it"]
    props: Annotated[CpuProperties, "where it goes"]
    qom_path: Annotated[str | None, "its object, when it is there"] = None


class MemoryKind(Enum):
    """MemoryDeviceInfoKind."""

    DIMM = "dimm"


class Dimm(NamedTuple):
    """PCDIMMDeviceInfo."""

    addr: Annotated[int, "guest-physical address"]
    size: Annotated[int, "bytes"]
    slot: Annotated[int, "its place"]
    memdev: Annotated[str, "the object of its memory"]
    id: Annotated[str | None, "its name"] = None
    node: Annotated[int, "NUMA node"] = 0
    hotplugged: Annotated[bool, "it came while the guest ran"] = True
    hotpluggable: Annotated[bool, "it may go"] = True


class MemoryDevice(NamedTuple):
    type: Annotated[MemoryKind, "the kind of memory"]
    data: Annotated[Dimm, "the device"]


class MemorySummary(NamedTuple):
    base_memory: Annotated[int, "bytes of RAM at start"]
    plugged_memory: Annotated[int, "bytes that were added"]


class MigrationStatus(Enum):
    NONE = "none"


class MigrationInfo(NamedTuple):
    status: Annotated[MigrationStatus, "none: there is no migration yet"]


class CpuDefinition(NamedTuple):
    name: Annotated[str, "the model"]
    typename: Annotated[str, "the type of such a CPU"]
    static: Annotated[bool, "it is the same on every host"]
    migration_safe: Annotated[bool, "a guest on it can move"]
    unavailable_features: Annotated[list[str], "what of it this host lacks"]
    deprecated: Annotated[bool, "it will go away"]


class CpuModel(NamedTuple):
    name: Annotated[str, "the model"]
    props: Annotated[Any, "features switched on or off by name"] = None


class ExpansionType(Enum):
    STATIC = "static"
    FULL = "full"


class ExpansionArguments(NamedTuple):
    type: Annotated[ExpansionType, "how far to expand"]
    model: Annotated[CpuModel, "what to expand"]


class ExpansionInfo(NamedTuple):
    model: Annotated[CpuModel, "what it stands for"]


class ParameterType(Enum):
    """CommandLineParameterType."""

    STRING = "string"
    BOOLEAN = "boolean"
    NUMBER = "number"
    SIZE = "size"


class Parameter(NamedTuple):
    name: Annotated[str, "the key"]
    type: Annotated[ParameterType, "what it takes"]


class OptionInfo(NamedTuple):
    option: Annotated[str, "its name, without dashes"]
    parameters: Annotated[list[Parameter], "its keys"]


class OptionArguments(NamedTuple):
    option: Annotated[str | None, "only this one"] = None


@command("query-kvm")
def query_kvm(call: Call) -> KvmInfo:
    """Whether KVM runs the guest; it always does."""
    return KvmInfo(True, True)


@command("query-accelerators")
def query_accelerators(call: Call) -> AcceleratorInfo:
    """What runs the guest."""
    return AcceleratorInfo(Accelerator.KVM, [Accelerator.KVM])


@command("query-target")
def query_target(call: Call) -> TargetInfo:
    """The guest's architecture."""
    return TargetInfo(Architecture.X86_64)


@command("query-machines")
def query_machines(call: Call) -> list[MachineInfo]:
    """The kinds of machine that nemu makes."""
    from nemu.config.cpus import MAX_CPUS

    return [MachineInfo(MACHINE, MAX_CPUS, True, False, False, True, True, CPU_TYPE)]


@command("query-cpus-fast")
def query_cpus_fast(call: Call) -> list[CpuInfo]:
    """The CPUs, without a stop of theirs."""
    return [
        CpuInfo(number, cpu_path(call, number), vcpu.native_id or 0, core(number), Architecture.X86_64)
        for number, vcpu in call.session.machine.cpus.present.items()
    ]


def cpu_path(call: Call, number: int) -> str:
    """The object of a CPU that is there."""
    name = call.session.inventory.cpus.get(number, "")
    return f"{PLUGGED}{name}" if name else CPU_PATH.format(number)


def core(index: int) -> CpuProperties:
    """Where the CPU with this number is: one package of cores with one thread each."""
    return CpuProperties(0, index, 0)


@command("query-hotpluggable-cpus")
def query_hotpluggable_cpus(call: Call) -> list[HotpluggableCpu]:
    """Every CPU that there can be, those that are there with their objects."""
    cpus = call.session.machine.cpus
    present = cpus.present
    return [
        HotpluggableCpu(CPU_TYPE, 1, core(number), cpu_path(call, number) if number in present else None)
        for number in reversed(range(cpus.maximum))
    ]


@command("query-memory-devices")
def query_memory_devices(call: Call) -> list[MemoryDevice]:
    """The memory devices."""
    inventory = call.session.inventory
    return [
        MemoryDevice(
            MemoryKind.DIMM,
            Dimm(region.gpa, region.size, slot, f"/objects/{module.memory}", module.name or None),
        )
        for slot, (_, region) in sorted(call.session.machine.dimms.present.items())
        if (module := inventory.modules.get(slot))
    ]


@command("query-memory-size-summary")
def query_memory_size_summary(call: Call) -> MemorySummary:
    """How much memory the machine has."""
    plugged = sum(region.size for _, region in call.session.machine.dimms.present.values())
    return MemorySummary(call.session.config.memory.size, plugged)


@command("query-migrate")
def query_migrate(call: Call) -> MigrationInfo:
    """How a migration goes: there is none."""
    return MigrationInfo(MigrationStatus.NONE)


@command("query-cpu-definitions")
def query_cpu_definitions(call: Call) -> list[CpuDefinition]:
    """The CPU models that nemu knows: the host's own."""
    return [CpuDefinition(CPU_MODEL, CPU_TYPE, False, False, [], False)]


@command("query-cpu-model-expansion")
def query_cpu_model_expansion(call: Call, arguments: ExpansionArguments) -> ExpansionInfo:
    """What a CPU model stands for: the host's features cannot be switched one by one, and are not listed."""
    if arguments.model.name != CPU_MODEL:
        raise QmpError(f"CPU model '{arguments.model.name}' not found")
    for name in arguments.model.props or ():
        raise QmpError(f"Property '{CPU_TYPE}.{name}' not found")
    return ExpansionInfo(CpuModel(CPU_MODEL, {}))


@command("query-command-line-options")
def query_command_line_options(call: Call, arguments: OptionArguments) -> list[OptionInfo]:
    """The options of nemu run, with the keys of those that have some."""
    from nemu.config import settings

    found = [OptionInfo(one.option, _parameters(one.metavar)) for one in settings()]
    if arguments.option is None:
        return found
    if chosen := [one for one in found if one.option == arguments.option]:
        return chosen
    raise QmpError(f"invalid option name: {arguments.option}")


def _parameters(metavar: str) -> list[Parameter]:
    """The keys in ``PATH[,readonly=on|off][,queues=N]``."""
    kinds = {"on|off": ParameterType.BOOLEAN, "N": ParameterType.NUMBER, "SIZE": ParameterType.SIZE}
    pairs = re.findall(r"([a-z][a-z-]*)=([A-Z]+|[a-z]+(?:\|[a-z]+)*)", metavar)
    return [Parameter(key, kinds.get(value, ParameterType.STRING)) for key, value in pairs]
