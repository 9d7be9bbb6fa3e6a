"""What peripherals tell management of themselves, on real backends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from fakes.loop import FakeLoop
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.disk import DiskConfig
from nemu.config.port import PortConfig
from nemu.interfaces import BlockInfo, ChardevInfo
from nemu.peripherals import Peripherals


def test_disks_consoles_and_ports_are_described(tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(1024))
    socket, port = str(tmp_path / "c"), str(tmp_path / "p")
    config = MachineConfig(
        disks=(
            DiskConfig(str(tmp_path / "a.img")),
            DiskConfig(str(tmp_path / "b.img"), readonly=True, bus="scsi"),
        ),
        console=ChardevConfig("socket", socket),
        ports=(PortConfig("org.test", "file", port),),
    )
    loop = FakeLoop()
    peripherals = Peripherals(config, loop, lambda: None, lambda event, **data: None)  # type: ignore[arg-type]
    assert peripherals.blocks() == [
        BlockInfo("disk0", "virtio-blk0", str(tmp_path / "a.img"), 1024, False),
        BlockInfo("disk1", "virtio-scsi0", str(tmp_path / "b.img"), 1024, True),
    ]
    assert sorted(peripherals.chardevs()) == [
        ChardevInfo("console", f"unix:{socket}", False),
        ChardevInfo("org.test", f"file:{port}", False),
    ]
    machine = SimpleNamespace(loop=loop, lock=loop.lock, ram=None)
    names = {one.device(machine).name for one in peripherals}  # type: ignore[arg-type]
    assert {block.device for block in peripherals.blocks()} <= names
    assert all(chardev.open for chardev in peripherals.chardevs())
    peripherals.close()
