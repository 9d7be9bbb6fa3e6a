"""The test rig: an emulated host with the project's tree under /nemu and the small guest's kernel.

Each test module gets a fresh clone in a fraction of a second (fixture ``host``); tests may run programs,
nemu itself, or a function of their own module inside it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemu.host import guest
from nemu.host.emulated import Host, Result

ROOT = Path(__file__).resolve().parents[2]
KERNEL, INITRD = "/run/guest/kernel", "/run/guest/initrd"
# What a test module imports at its top must be importable where its functions run.
_LIBRARIES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "qemu.qmp")


class Rig(Host):
    """An emulated host for tests.  Its inner paths KERNEL and INITRD are the small guest's."""

    def __init__(self, packages: Sequence[str] = (), memory: int = 1024) -> None:
        small = guest.ensure()
        self.append = small.append
        super().__init__(
            tree=_tree(), files={KERNEL: small.kernel, INITRD: small.initrd}, packages=packages, memory=memory
        )

    def run_nemu(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> Result:
        """``nemu argv...`` on this host's KVM."""
        native = ["--host", "native"] if argv[:1] == ["run"] and "--host" not in argv else []
        return self.run_module("nemu", [*argv, *native], stdin=stdin, env=env, timeout=timeout)

    def run_guest(self, command: str, options: Sequence[str] = (), timeout: float = 120.0) -> Result:
        """Boot the small guest by ``nemu run``, let it run a shell command, and power it off."""
        append = f"{self.append} {guest.run_option(command)}"
        boot = ["run", "--kernel", KERNEL, "--initrd", INITRD, "--append", append]
        return self.run_nemu([*boot, *options], timeout=timeout)

    def call_here(self, function: Callable[..., Any], /, timeout: float = 120.0, **arguments: Any) -> Any:
        """Call a function of a test module inside; arguments and result are JSON values."""
        path = Path(function.__code__.co_filename).resolve().relative_to(ROOT).with_suffix("")
        name = ".".join(path.parts).removeprefix("src.")
        return self.call(f"{name}:{function.__qualname__}", arguments, timeout=timeout)


@functools.cache
def _tree() -> dict[str, str]:
    parts = {"src/nemu": str(ROOT / "src/nemu"), "tests": str(ROOT / "tests")}
    if (ROOT / "benchmarks").is_dir():
        parts["benchmarks"] = str(ROOT / "benchmarks")
    for name in _LIBRARIES:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            continue
        origin = Path(found.origin)
        if found.submodule_search_locations:
            parts[f"tests/{name.replace('.', '/')}"] = str(origin.parent)
        else:
            parts[f"tests/{origin.name}"] = str(origin)
    return parts
