"""Boots of Debian's kernel in the emulated host: scripts go in with the initramfs, their output comes back.

``boot(host, {"cpus": "nproc", ...})`` runs each command in the small guest, in this order, and gives what
each one printed.  One boot costs seconds, so that tests of a module share one by a fixture.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functional.rig import INITRD, KERNEL, Rig
from nemu.host import cpio

SCRIPT = "t"  # the path of the script in the guest's root
_HEAD = re.compile(r"^#<([\w-]+)>\n", re.MULTILINE)
REPORT = "/tmp/report.json"


@dataclass(frozen=True)
class Boot:
    """How ``nemu run`` ended and what was seen."""

    status: int
    sections: dict[str, str]  # what each command of the script printed, without the last line end
    console: str
    stderr: str
    report: dict[str, Any]

    def __getitem__(self, section: str) -> str:
        return self.sections[section]


def script_text(commands: Mapping[str, str] | str) -> str:
    """A shell script that runs ``commands`` with a head before the output of each."""
    if isinstance(commands, str):
        return f"#!/bin/sh\n{commands}\n"
    parts = [f"echo; echo '#<{name}>'\n{command}\n" for name, command in commands.items()]
    # The kernel's own messages would fall between the output of the commands.
    return (
        "#!/bin/sh\nexec 2>&1\necho 1 >/proc/sys/kernel/printk\n" + "".join(parts) + "echo; echo '#<end>'\n"
    )


def initrd_with(host: Rig, script: str, programs: Mapping[str, bytes] | None = None) -> str:
    """The path in ``host`` of the small guest's initramfs with ``script`` and ``programs`` at its root."""
    extra = cpio.Archive()
    extra.file(SCRIPT, script.encode(), 0o755)
    for path, content in (programs or {}).items():
        extra.file(path, content, 0o755)
    name = f"/tmp/initrd-{hashlib.sha256(extra.to_bytes()).hexdigest()[:16]}"
    host.put(extra.to_bytes(), f"{name}.extra")
    # An archive starts at a multiple of 4 bytes behind the one before.
    padding = f"head -c $((-$(stat -L -c %s {INITRD}) & 3)) /dev/zero"
    done = host.run(["sh", "-c", f"{{ cat {INITRD}; {padding}; cat {name}.extra; }} >{name}"])
    assert done.status == 0, done.stderr
    return name


def compiled(name: str) -> bytes:
    """The C source ``name`` of this directory as a static program."""
    source = Path(__file__).with_name(name)
    with tempfile.NamedTemporaryFile() as program:
        command = ["gcc", "-static", "-Os", "-s", "-Wall", "-Werror", "-o", program.name, str(source)]
        subprocess.run(command, check=True)
        return Path(program.name).read_bytes()


def arguments(
    host: Rig,
    script: str,
    *options: str,
    kernel: str = KERNEL,
    append: str = "",
    report: str = REPORT,
    programs: Mapping[str, bytes] | None = None,
) -> list[str]:
    """The words after ``nemu`` that boot the small guest with ``script``."""
    line = f"{host.append} nemu.run=/{SCRIPT} {append}".strip()
    boot = ["run", "--kernel", kernel, "--initrd", initrd_with(host, script, programs), "--append", line]
    return [*boot, *options, "--report", report, "--host", "native"]


def boot(
    host: Rig,
    commands: Mapping[str, str] | str,
    *options: str,
    kernel: str = KERNEL,
    append: str = "",
    timeout: float = 120.0,
    programs: Mapping[str, bytes] | None = None,
) -> Boot:
    """Boot, run ``commands``, power off."""
    host.run(["rm", "-f", REPORT])
    script = script_text(commands)
    argv = arguments(host, script, *options, kernel=kernel, append=append, programs=programs)
    done = host.run_nemu(argv, timeout=timeout)
    console = done.stdout.decode(errors="replace").replace("\r", "")
    parts = _HEAD.split(console)
    sections = {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    exists = host.run(["test", "-e", REPORT]).status == 0
    report = json.loads(host.get(REPORT)) if exists else {}
    return Boot(done.status, sections, console, done.stderr.decode(errors="replace"), report)
