"""What this host offers to nemu, and what would help where it lacks something.

Nothing is changed and nothing is installed; the only thing that is made is a throwaway VM.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from nemu.errors import HostError

NATIVE = "to run on KVM"
EMULATED = "to run in the emulated host"
OPTIONAL = "for some settings"
TESTS = "for nemu's own tests"
UNUSED = "not needed by this version"


class Finding(NamedTuple):
    """One thing that was looked at; ``remedy`` is "" when ``ok``."""

    name: str
    purpose: str  # one of the above
    ok: bool
    detail: str
    remedy: str = ""


class Diagnosis(NamedTuple):
    """``host`` is where ``nemu run`` runs: "native", "emulated" or "" when it cannot."""

    host: str
    findings: list[Finding]


class _Program(NamedTuple):
    name: str
    purpose: str
    package: str  # the distribution package that has it
    use: str


_PROGRAMS = (
    _Program("apt-get", EMULATED, "apt", "fetches the packages that it is made of"),
    _Program("dpkg-deb", EMULATED, "dpkg", "unpacks them"),
    _Program("passt", OPTIONAL, "passt", "--net user"),
    _Program("iasl", TESTS, "acpica-tools", "judges the ACPI tables"),
    _Program("strace", TESTS, "strace", "shows that an idle machine sleeps"),
    _Program("virtiofsd", OPTIONAL, "qemu-system-common", "--fs dir=DIR, nemu run -- COMMAND"),
    _Program("gcc", TESTS, "gcc", "compares structures with the kernel headers"),
)


class _Node(NamedTuple):
    name: str
    purpose: str
    path: str
    module: str  # of the kernel
    use: str


_NODES = (
    _Node("tun", OPTIONAL, "/dev/net/tun", "tun", "--net tap=NAME"),
    _Node("vhost-net", OPTIONAL, "/dev/vhost-net", "vhost_net", "--net tap=NAME without a detour"),
    _Node("vhost-vsock", OPTIONAL, "/dev/vhost-vsock", "vhost_vsock", "--vsock cid=N"),
)
# Some programs that nobody types lie beside the PATH.
_SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/libexec:/usr/lib/qemu"
# virtualization in the flags of /proc/cpuinfo, and its module
_CPU_FLAGS = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def diagnose() -> Diagnosis:
    """Look at everything."""
    findings = [*_native(), *_emulated(), *_optional(), *_programs(TESTS), *_unused()]
    for host, purpose in (("native", NATIVE), ("emulated", EMULATED)):
        if all(finding.ok for finding in findings if finding.purpose == purpose):
            return Diagnosis(host, findings)
    return Diagnosis("", findings)


def _native() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield _finding("python", NATIVE, sys.version_info >= (3, 11), version, "install Python 3.11 or later")
    machine = os.uname().machine
    yield _finding("cpu", NATIVE, machine == "x86_64", machine, "use an x86-64 machine")
    from nemu.host.probe import probe

    found = probe()
    speed = "runs guests at the speed of the CPU" if found.fast else found.reason
    yield _finding("kvm", NATIVE, found.usable and found.fast, speed, _kvm_remedy(found.usable))
    if found.usable:
        yield _capabilities()


def _kvm_remedy(usable: bool) -> str:
    """What would make /dev/kvm good, from what the CPU says of itself."""
    if usable:
        return "run on hardware, or in a VM with nested virtualization; the emulated host serves until then"
    if os.path.exists("/dev/kvm"):
        return "sudo usermod -aG kvm $USER, and log in again"
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        words = file.read().split()
    for flag, module in _CPU_FLAGS.items():
        if flag in words:
            return f"sudo modprobe {module} (in a container: pass /dev/kvm in)"
    return "turn virtualization on in the firmware, or nested virtualization in the hypervisor around"


def _capabilities() -> Finding:
    from nemu.arch.x86_64 import vm
    from nemu.kvm.handles import System

    try:
        system = System()
        try:
            vm.require(system)
        finally:
            system.close()
    except HostError as error:
        return Finding("capabilities", NATIVE, False, str(error), "use Linux 4.12 or later")
    return Finding("capabilities", NATIVE, True, "KVM has all that the machine is built on")


def _emulated() -> Iterator[Finding]:
    if _is_cached("host") and _is_cached("guest"):
        yield Finding("built", EMULATED, True, "the emulated host and the small guest are in the cache")
        return
    yield from _programs(EMULATED)
    system = _os_release()
    debian = system.get("ID") == "debian"
    yield _finding("packages", EMULATED, debian, system.get("PRETTY_NAME", "unknown"), "run on Debian")
    qemu = shutil.which("qemu-system-x86_64", path=_SEARCH_PATH)
    yield Finding("qemu", EMULATED, True, qemu or "not installed; the first use fetches one for itself")
    for name, kind in (("small guest", "guest"), ("emulated host", "host")):
        detail = "built" if _is_cached(kind) else "not built yet; the first use does it"
        yield Finding(name, EMULATED, True, detail)


def _os_release() -> dict[str, str]:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            pairs = [line.strip().partition("=") for line in file]
    except OSError:
        return {}
    return {key: value.strip('"') for key, _, value in pairs}


def _is_cached(kind: str) -> bool:
    from nemu.host import cache

    place = os.path.join(cache.root(), kind)
    return os.path.isdir(place) and any(not name.startswith(".") for name in os.listdir(place))


def _optional() -> Iterator[Finding]:
    yield from _programs(OPTIONAL)
    yield from _nodes(OPTIONAL)
    yield _kernels()


def _unused() -> Iterator[Finding]:
    yield from _programs(UNUSED)
    yield Finding("firmware", UNUSED, True, "nemu loads kernels itself")


def _nodes(purpose: str) -> Iterator[Finding]:
    for node in _NODES:
        if node.purpose == purpose:
            ok = os.access(node.path, os.R_OK | os.W_OK)
            there = os.path.exists(node.path)
            problem = f"{'no permission for' if there else 'no'} {node.path}; {node.use}"
            remedy = "run as root" if there else f"sudo modprobe {node.module}"
            yield _finding(node.name, purpose, ok, node.path if ok else problem, remedy)


def _kernels() -> Finding:
    """The distribution's kernels here, which ``--kernel`` takes as they are."""
    names = sorted(os.listdir("/boot")) if os.path.isdir("/boot") else []
    kernels = [f"/boot/{name}" for name in names if name.startswith("vmlinuz")]
    readable = [kernel for kernel in kernels if os.access(kernel, os.R_OK)]
    if readable:
        return Finding("kernels", OPTIONAL, True, ", ".join(readable))
    detail = "none in /boot can be read" if kernels else "none in /boot"
    return Finding(
        "kernels",
        OPTIONAL,
        False,
        detail,
        "sudo apt-get install linux-image-cloud-amd64, or boot the small guest: nemu run",
    )


def _programs(purpose: str) -> Iterator[Finding]:
    for program in _PROGRAMS:
        if program.purpose == purpose:
            path = shutil.which(program.name, path=_SEARCH_PATH)
            remedy = f"sudo apt-get install {program.package}"
            yield _finding(program.name, purpose, bool(path), path or f"not found; {program.use}", remedy)


def _finding(name: str, purpose: str, ok: bool, detail: str, remedy: str) -> Finding:
    return Finding(name, purpose, ok, detail, "" if ok else remedy)
