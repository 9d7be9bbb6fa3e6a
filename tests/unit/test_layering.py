"""Who may import whom, and what a start may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemu

SOURCE = Path(nemu.__file__).parent

# The parts that know what runs a machine; nothing below them does.
_TOP = ("cli", "host", "session", "build")
_DEVICE_SIDE = (*_TOP, "machine", "report", "kvm", "arch", "boot", "loop", "validate")
_DEVICES = ("virtio", "vhost", "devices", "pci", "acpi")
# Package -> what it must not import.  "" stands for everything of nemu.
FORBIDDEN = {
    "errors": ("",),
    "interfaces": ("",),
    "syntax": ("",),
    "scsi": (*_DEVICE_SIDE, *_DEVICES, "bus"),
    "virtio": _DEVICE_SIDE,
    "vhost": _DEVICE_SIDE,
    "devices": _DEVICE_SIDE,
    "pci": _DEVICE_SIDE,
    "acpi": _DEVICE_SIDE,
    "bus": (*_DEVICE_SIDE, *_DEVICES, "backends"),
    "backends": (*_TOP, *_DEVICES, "machine", "kvm", "arch", "boot"),
    "memory": (*_DEVICE_SIDE, *_DEVICES, "bus", "backends"),
    "loop": (*_TOP, *_DEVICES, "machine", "kvm", "arch", "boot", "bus", "backends"),
    "kvm": (*_TOP, *_DEVICES, "machine", "backends", "boot"),
    "boot": (*_TOP, *_DEVICES, "machine", "backends", "kvm"),
    "arch": _TOP,
    "machine": (*_TOP, *_DEVICES, "boot", "backends"),
    "report": (*_TOP, *_DEVICES, "boot", "backends", "kvm"),
    "config": (*_DEVICE_SIDE, *_DEVICES, "bus", "backends"),
    "config_file": (*_DEVICE_SIDE, *_DEVICES, "bus", "backends"),
    "validate": (*_TOP, *_DEVICES, "machine", "kvm", "arch", "backends"),
    "qmp": ("cli", "host", "build", "kvm", "arch", "boot", "loop", "peripherals", *_DEVICES),
    "rundir": (*_DEVICE_SIDE, *_DEVICES, "bus"),
    "management": ("cli", "host", "build", "kvm", "arch", "boot", *_DEVICES),
    "build": ("cli", "host"),
    "session": ("cli", "host"),
    "host": ("cli",),
    "shrink": (
        "cli",
        "session",
        "build",
        *_DEVICE_SIDE[len(_TOP) :],
        *_DEVICES,
        "bus",
        "backends",
        "memory",
        "config",
    ),
}
# What is x86 lives in arch/x86_64 and is reached from these alone.
ARCH_SEAMS = {"boot", "build", "kvm", "machine", "host"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(dotted name below nemu, tree) of every module."""
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """What ``tree`` imports of nemu, anywhere in it, as dotted names below nemu."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("nemu."):
                yield name.removeprefix("nemu.")


def upward(name: str, tree: ast.Module) -> list[str]:
    """The imports of module ``name`` that the rules forbid."""
    package = name.partition(".")[0]
    forbidden = FORBIDDEN.get(package, ())
    found = []
    for imported in imports(tree):
        target = imported.partition(".")[0]
        if target == package:
            continue
        if target in forbidden or "" in forbidden or (target == "arch" and package not in ARCH_SEAMS):
            found.append(imported)
    return found


def test_imports_only_go_down() -> None:
    wrong = [f"nemu.{name} imports nemu.{bad}" for name, tree in modules() for bad in upward(name, tree)]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("virtio.blk", "from nemu.kvm import handles"),
        ("virtio.blk", "def f():\n    import nemu.machine"),
        ("kvm.vcpu", "from nemu import devices"),
        ("config", "from nemu.arch.x86_64 import layout"),
        ("cli.run", "from nemu.arch import x86_64"),
        ("errors", "import nemu.config"),
    ],
)
def test_an_upward_import_is_found(name: str, source: str) -> None:
    assert upward(name, ast.parse(source)) != []


def test_every_rule_is_about_something_that_exists() -> None:
    known = {name.partition(".")[0] for name, _ in modules()}
    assert set(FORBIDDEN) <= known
    assert known >= ARCH_SEAMS


# Slow to load, and not needed before a guest runs.
HEAVY = (
    "asyncio", "concurrent.futures", "difflib", "email", "http", "importlib.metadata", "importlib.resources",
    "json", "logging", "multiprocessing", "pathlib", "pkg_resources", "rich", "shutil", "socketserver", "ssl",
    "subprocess", "tempfile", "tomllib", "unittest", "urllib.request", "xml",
)  # fmt: skip
UNUSED = (
    "nemu.cli.doctor",
    "nemu.cli.guest",
    "nemu.cli.completion",
    "nemu.cli.shrink",
    "nemu.shrink",
    "nemu.config_file",
    "nemu.host.emulated",
    "nemu.qmp",
    "nemu.vhost",
    "nemu.backends.links",
)

_START = """
import sys
before = set(sys.modules)
from nemu import cli
from nemu.errors import HostError
import nemu.session, nemu.validate, nemu.boot.loader
def run(config, options):
    print(*sorted(set(sys.modules) - before))
    return 0
nemu.session.run = run
nemu.validate.validate = lambda config, options: None
sys.exit(cli.main(["run", "--host", "native", "--kernel", "k", "--disk", "d", "--net", "user"]))
"""


def test_a_start_loads_only_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", _START], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "nemu.session" in loaded
    assert sorted(loaded & {*HEAVY, *UNUSED}) == []
