"""A session that a test steers, and a client that talks to its QMP server over a socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from fakes.loop import FakeLoop
from nemu.config import MachineConfig
from nemu.config.cpus import Cpus
from nemu.config.disk import DiskConfig
from nemu.interfaces import BlockInfo, ChardevInfo, PciBar, PciFunctionInfo
from nemu.machine import RunState
from nemu.plug.inventory import Inventory
from nemu.qmp.server import Server
from nemu.qmp.sockets import Endpoint


class FakeBalloon:
    def __init__(self) -> None:
        self.actual = 512 << 20

    def set_target(self, size: int) -> None:
        self.actual = size


class FakeSession:
    """What handlers call; ``asked`` is what they asked for."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.name = "fake"
        self.config = MachineConfig(
            kernel="/boot/vmlinuz", append="console=hvc0", cpus=Cpus(2, 2), disks=(DiskConfig("/d.img"),)
        )
        self.asked: list[str] = []
        self.server = Server(self, self.loop)  # type: ignore[arg-type]
        vcpus = [SimpleNamespace(native_id=1000 + index) for index in range(2)]
        self.machine: Any = SimpleNamespace(
            state=RunState.RUNNING,
            vcpus=vcpus,
            cpus=SimpleNamespace(present=dict(enumerate(vcpus)), maximum=2),
            dimms=SimpleNamespace(present={}),
            balloon=None,
            pci_functions=self._functions,
            inject_nmi=lambda: self.asked.append("nmi"),
        )
        self.peripherals: Any = SimpleNamespace(
            blocks=lambda: [BlockInfo("disk0", "virtio-blk0", "/d.img", 4096, False)],
            chardevs=lambda: [ChardevInfo("console", "stdio", True)],
        )
        self.inventory = Inventory(self.config, self.peripherals, self.loop, self.server.emit)  # type: ignore[arg-type]

    @staticmethod
    def _functions() -> list[PciFunctionInfo]:
        bar = PciBar(0, 0x4000, 0x8000_0000, True, False)
        hidden = bar._replace(address=None)
        return [
            PciFunctionInfo("", 0, 0x8086, 0x0D57, 0x8086, 0x0D57, 0x0600, ()),
            PciFunctionInfo("virtio-blk0", 1, 0x1AF4, 0x1042, 0x1AF4, 0x1042, 0x0180, (bar,)),
            PciFunctionInfo("virtio-rng0", 2, 0x1AF4, 0x1044, 0x1AF4, 0x1044, 0xFF00, (hidden,)),
        ]  # fmt: skip

    def pause(self) -> None:
        self.machine.state = RunState.PAUSED
        self.server.emit("STOP", {})

    def resume(self) -> None:
        self.machine.state = RunState.RUNNING
        self.server.emit("RESUME", {})

    def reset(self) -> None:
        self.asked.append("reset")

    def power_down(self) -> None:
        self.asked.append("power_down")

    def quit(self) -> None:
        self.asked.append("quit")

    def connect(self, *, negotiate: bool = True) -> Client:
        """A client that has been greeted."""
        theirs, ours = socket.socketpair()
        self.server.open(Endpoint(theirs))
        client = Client(self, ours)
        client.greeting = client.receive()
        if negotiate:
            assert client.execute("qmp_capabilities") == {}
        return client


class Client:
    """The other end; it turns the loop itself."""

    def __init__(self, session: FakeSession, end: socket.socket) -> None:
        self.session = session
        self.end = end
        self.greeting: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        end.setblocking(False)

    def send(self, text: str | bytes, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.end, [text.encode() if isinstance(text, str) else text], fds)

    def receive(self) -> dict[str, Any]:
        """The next message."""
        while b"\n" not in self._buffer:
            turned = self.session.loop.turn()
            try:
                data = self.end.recv(1 << 20)
            except BlockingIOError:
                assert turned, "nothing more comes"
                continue
            assert data, "it was dropped"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, request: Any, fds: Sequence[int] = ()) -> dict[str, Any]:
        """The answer to ``request``; events before it are kept."""
        self.send(request if isinstance(request, str) else json.dumps(request), fds)
        while "event" in (message := self.receive()):
            self.events.append(message)
        return message

    def execute(self, name: str, /, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """The result of a command."""
        request = {"execute": name, "arguments": {key.replace("_", "-"): arguments[key] for key in arguments}}
        answer = self.ask(request, fds)
        assert "return" in answer, answer
        return answer["return"]

    def error(self, name: str, /, **arguments: Any) -> tuple[str, str]:
        """The class and the text of a command that fails."""
        request = {"execute": name, "arguments": {key.replace("_", "-"): arguments[key] for key in arguments}}
        error = self.ask(request)["error"]
        return error["class"], error["desc"]

    def dropped(self) -> bool:
        """Whether the server has closed the connection; what it said before is read away."""
        self.session.loop.settle()
        while True:
            try:
                if not self.end.recv(1 << 20):
                    return True
            except ConnectionResetError:
                return True
            except BlockingIOError:
                return False
