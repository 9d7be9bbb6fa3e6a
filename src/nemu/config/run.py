"""How this run of a machine goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemu import syntax
from nemu.config.setting import Kind, Setting, setting

if TYPE_CHECKING:
    from nemu.config.qmp import QmpConfig


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
    name: str = setting(
        "",
        Setting(
            "name",
            syntax.machine_name,
            "NAME",
            "how nemu ps, nemu stop and the others call it (default: vm-PID)",
        ),
    )
    start: str = setting(
        "running",
        Setting(
            "start",
            syntax.choice("running", "paused"),
            "running|paused",
            "paused holds the CPUs before the first instruction, until nemu resume (default: running)",
        ),
    )
    qmp: tuple[QmpConfig, ...] = setting(
        (),
        Setting(
            "qmp",
            Kind("qmp", "QmpConfig"),
            "PATH|fd=N|tcp=127.0.0.1:PORT|off",
            "serve QMP clients on a Unix socket, an inherited socket or a port of the loopback interface; "
            "repeat for more; off leaves out nemu's own socket, by which nemu ps finds it",
            many=True,
            paths=True,
        ),
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
