"""Boots of the QEMU that was built: the small guest has to reach its shell and run a command.

An x86-64 program runs here when KVM is fast, or with TCG anywhere; else in nemu's emulated host.  An AArch64
program with KVM runs in an emulated AArch64 machine that has EL2, started from the distribution's QEMU.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nemu.errors import HostError
from nemu.host import cpio, guest, packages
from nemu.shrink.profile import Boot, Build

TIMEOUT = 600.0  # seconds: an emulated host on a busy machine
_WORD = "nemu-shrink-booted"
_COMMAND = f"echo {_WORD} $(uname -m) $(ls /sys/bus/virtio/drivers | tr '\\n' ' ')"
_DONE = re.compile(rf"^{_WORD} (\w+)(.*)$", re.MULTILINE)
_CALL = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +\d+ +(?:\d+ +)?(\w+)$", re.MULTILINE)
_PACKAGE = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
_GUEST = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass
class Booted:
    """How a boot went.  ``syscalls``: what the program called meanwhile, where that was counted.

    ``distribution``: it was the distribution's own program, to compare with.
    """

    name: str
    where: str
    ok: bool
    text: str = ""
    syscalls: list[str] = field(default_factory=list)
    distribution: bool = False


def run(
    build: Build, boot: Boot, program: str, sysroot: str = "", note: Callable[[str], None] = lambda text: None
) -> Booted:
    """Boot the stripped ``program``; raises HostError when a host for it cannot be had."""
    name = f"{build.name} {boot.machine} {boot.accel}"
    if boot.accel == "tcg":
        return _tcg(build, boot, program, name)
    if build.architecture == "arm64":
        return _arm_host(boot, program, sysroot, name)
    from nemu.host.probe import probe

    found = probe()
    if found.usable and found.fast:
        return _here(boot, program, name)
    note(f"no fast KVM here ({found.reason}): {name} in the emulated host")
    return _x86_host(boot, program, name)


def distribution(build: Build, boot: Boot) -> Booted | None:
    """The same boot of the distribution's own x86-64 program on KVM, for its system calls; None elsewhere."""
    if boot.accel != "kvm" or build.architecture != "amd64" or not build.baseline:
        return None
    from nemu.host.probe import probe

    found = probe()
    name = f"{build.name} {boot.machine} {boot.accel}"
    if found.usable and found.fast:
        (program,) = packages.program("qemu-system-x86_64", build.baseline)[-1:]
        done = _here(boot, program, name)
    else:
        done = _x86_host(boot, "", name)
    return replace(done, distribution=True)


def arguments(boot: Boot, kernel: str, initrd: str) -> list[str]:
    """QEMU's command line for ``boot``, from ``-M`` on."""
    append = f"console={_console(boot)} quiet loglevel=3 panic=-1 {guest.run_option(_COMMAND)}"
    return [
        *("-M", boot.machine, "-accel", boot.accel, *(("-cpu", boot.cpu) if boot.cpu else ())),
        *("-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", kernel, "-initrd", initrd, "-append", append, *boot.arguments),
    ]


def _judge(name: str, where: str, text: str, calls: str = "") -> Booted:
    done = _DONE.search(text.replace("\r", ""))
    tail = text.strip()[-500:]
    return Booted(name, where, done is not None, done[0] if done else tail, sorted(set(_CALL.findall(calls))))


def _tcg(build: Build, boot: Boot, program: str, name: str) -> Booted:
    cpu = build.target.partition("-")[0]
    small = guest.ensure(_GUEST[cpu])
    argv = [program, *_firmware(cpu), *arguments(boot, small.kernel, small.initrd)]
    return _local(argv, name, "here, with TCG")


def _here(boot: Boot, program: str, name: str) -> Booted:
    small = guest.ensure()
    machine = arguments(boot, small.kernel, small.initrd)
    return _local([program, *_firmware("x86_64"), *machine], name, "here, on KVM")


def _console(boot: Boot) -> str:
    """The machine's own serial port: it is there before any driver is loaded."""
    return "ttyAMA0" if boot.machine.startswith("virt") else "ttyS0"


def _firmware(cpu: str) -> list[str]:
    base = packages.tree((_PACKAGE[cpu],))
    return ["-L", f"{base}/usr/share/qemu", "-L", f"{base}/usr/share/seabios"]


def _local(argv: Sequence[str], name: str, where: str) -> Booted:
    """Run ``argv`` to its end, or for as long as a boot may take; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="nemu-boot-") as folder:
        counts = os.path.join(folder, "calls")
        done = subprocess.Popen(
            ["strace", "-f", "-c", "-o", counts, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            text, _ = done.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGTERM)
            text, _ = done.communicate()
        except BaseException:
            os.killpg(done.pid, signal.SIGKILL)
            raise
        with open(counts, encoding="utf-8", errors="replace") as file:
            return _judge(name, where, text.decode("utf-8", "replace"), file.read())


def _x86_host(boot: Boot, program: str, name: str) -> Booted:
    """In the emulated host, where without a ``program`` the distribution's own one is used."""
    from nemu.host.emulated.host import Host

    small = guest.ensure()
    files = {"/run/vmlinuz": small.kernel, "/run/initrd": small.initrd}
    if program:
        files["/run/qemu"] = program
    inside = "/tmp/qemu" if program else "/usr/bin/qemu-system-x86_64"
    with Host(files=files, packages=(_PACKAGE["x86_64"],), memory=1536) as host:
        if program:
            host.run(["cp", "/run/qemu", inside])
            host.run(["chmod", "755", inside])
        firmware = ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
        argv = [inside, *firmware, *arguments(boot, "/run/vmlinuz", "/run/initrd")]
        try:
            done = host.run(["strace", "-f", "-c", "-o", "/tmp/calls", *argv], timeout=TIMEOUT)
        except TimeoutError as error:
            return Booted(name, "the emulated host, on KVM", False, str(error))
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        return _judge(name, "the emulated host, on KVM", text, host.get("/tmp/calls").decode())


def _arm_host(boot: Boot, program: str, sysroot: str, name: str) -> Booted:
    """The outer machine's guest is the small guest with the program, its libraries and a guest for it."""
    small = guest.ensure("arm64")
    outer = packages.program("qemu-system-aarch64", _PACKAGE["aarch64"])
    where = "an emulated AArch64 machine, on KVM"
    inner = arguments(boot, "/q/vmlinuz", "/q/initrd")
    loader = "/q/lib/ld-linux-aarch64.so.1"
    words = [loader, "--library-path", "/q/lib", "/q/qemu", *inner]
    script = "#!/bin/sh\nexec " + " ".join(_quote(word) for word in words) + " </dev/null 2>&1\n"
    with tempfile.TemporaryDirectory(prefix="nemu-boot-") as folder:
        initrd = os.path.join(folder, "initrd")
        with open(initrd, "wb") as file, open(small.initrd, "rb") as base:
            file.write(base.read())
            file.write(_archive(small, program, sysroot, script).to_bytes())
        argv = [
            *outer,
            *(
                "-M",
                "virt,virtualization=on,gic-version=3",
                "-cpu",
                "cortex-a72",
                "-accel",
                "tcg",
                "-m",
                "1536",
            ),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-kernel", small.kernel, "-initrd", initrd),
            *("-append", f"console=ttyAMA0 quiet loglevel=3 panic=-1 {guest.run_option('sh /q/run')}"),
        ]
        # The system calls are those of the outer QEMU.
        return replace(_local(argv, name, where), syscalls=[])


def _archive(small: guest.Guest, program: str, sysroot: str, script: str) -> cpio.Archive:
    archive = cpio.Archive()
    archive.directory("q")
    archive.directory("q/lib")
    archive.file("q/run", script.encode(), 0o755)
    contents = {"q/qemu": program, "q/vmlinuz": small.kernel, "q/initrd": small.initrd}
    for library, path in _libraries(program, sysroot).items():
        contents[f"q/lib/{library}"] = path
    for name, path in contents.items():
        with open(path, "rb") as file:
            archive.file(name, file.read(), 0o755)
    return archive


def _libraries(program: str, sysroot: str) -> dict[str, str]:
    """Shared libraries that ``program`` of another architecture loads: name -> file below ``sysroot``."""
    folders = [f"{sysroot}/{place}/aarch64-linux-gnu" for place in ("lib", "usr/lib")]
    found: dict[str, str] = {}
    pending = [program]
    while pending:
        done = subprocess.run(["readelf", "-dW", pending.pop()], capture_output=True, text=True, check=True)
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout):
            path = next((f"{one}/{name}" for one in folders if os.path.exists(f"{one}/{name}")), None)
            if path is None:
                raise HostError(f"{os.path.basename(program)} needs {name}, which is not in its libraries")
            if name not in found:
                found[name] = path
                pending.append(path)
    loader = "ld-linux-aarch64.so.1"
    found[loader] = found.get(loader, f"{folders[0]}/{loader}")
    return found


def _quote(word: str) -> str:
    import shlex

    return shlex.quote(word)
