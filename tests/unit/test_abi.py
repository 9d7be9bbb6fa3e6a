"""Every ioctl number, constant, structure size and field offset, as the kernel's own headers have them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from nemu.arch.x86_64 import abi as x86
from nemu.ioctl import Ioctl
from nemu.kvm import abi as kvm
from nemu.vhost import abi as vhost

MODULES = (kvm, x86, vhost)

EXIT_MEMBERS = ("mmio.len", "io.data_offset", "internal.suberror", "fail_entry.cpu", "system_event.type")
# A bare __u64 in the header, so it has no name there.
_NOT_A_STRUCT = {"kvm_identity_map_addr"}


def constants() -> dict[str, int]:
    return {
        name: int(value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith(("KVM", "VHOST")) and isinstance(value, int) and name != "KVMIO"
    }


def structures() -> dict[str, type[ctypes.Structure]]:
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith(("kvm_", "vhost_")) and isinstance(value, type) and name not in _NOT_A_STRUCT
    }


def fields(structure: type[ctypes.Structure]) -> list[str]:
    """The fields to compare; padding has different names, and our kvm_run ends with the exit."""
    return [field[0] for field in structure._fields_ if "pad" not in field[0] and field[0] != "exit"]


def c_program() -> str:
    lines = [f'printf("{name} %lld\\n", (long long){name});' for name in constants()]
    for name, structure in structures().items():
        if name != "kvm_run":
            lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field in fields(structure):
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    for member in EXIT_MEMBERS:
        lines.append(f'printf("kvm_run.{member} %zu\\n", offsetof(struct kvm_run, {member}));')
    includes = "".join(
        f"#include <{name}>\n" for name in ("stdio.h", "stddef.h", "linux/kvm.h", "linux/vhost.h")
    )
    return f"{includes}int main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n"


@pytest.fixture(scope="module")
def header_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("gcc")
    assert compiler, "this test needs the packages gcc, libc6-dev and linux-libc-dev"
    directory: Path = tmp_path_factory.mktemp("abi")
    source = directory / "abi.c"
    source.write_text(c_program())
    subprocess.run([compiler, "-o", directory / "abi", source], check=True)
    output = subprocess.run([directory / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("name", sorted(constants()))
def test_constant_is_the_kernels(header_values: dict[str, int], name: str) -> None:
    assert constants()[name] == header_values[name]


@pytest.mark.parametrize("name", sorted(structures()))
def test_structure_is_the_kernels(header_values: dict[str, int], name: str) -> None:
    structure = structures()[name]
    if name != "kvm_run":
        assert ctypes.sizeof(structure) == header_values[name]
    for field in fields(structure):
        assert getattr(structure, field).offset == header_values[f"{name}.{field}"], field


def test_the_exits_of_kvm_run_lie_where_the_kernel_writes_them(header_values: dict[str, int]) -> None:
    run = kvm.kvm_run()
    base = ctypes.addressof(run)
    for member in EXIT_MEMBERS:
        part, field = member.split(".")
        structure = getattr(run.exit, part)
        offset = ctypes.addressof(structure) - base + getattr(type(structure), field).offset
        assert offset == header_values[f"kvm_run.{member}"]


def test_ioctls_know_their_names() -> None:
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, Ioctl):
                assert value.name == name
