"""Devices that come and go by QMP, over slots, controllers and backends that are real."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.plug import CONFIG, PlugSession, held
from fakes.qmp import Client
from nemu.config import MachineConfig
from nemu.config.chardev import ChardevConfig
from nemu.config.cpus import Cpus
from nemu.config.disk import DiskConfig

MIB = 1 << 20
CPU = "host-x86_64-cpu"
PLUGGED, LET_GO = 1, 3


@pytest.fixture
def session() -> Iterator[PlugSession]:
    session = PlugSession()
    yield session
    session.close()


@pytest.fixture
def client(session: PlugSession) -> Client:
    return session.connect()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(MIB))
    return str(path)


def events(client: Client, name: str) -> list[dict[str, Any]]:
    """The data of those events ``name`` that came."""
    client.session.loop.settle()
    client.execute("query-status")
    found = [one["data"] for one in client.events if one["event"] == name]
    client.events = [one for one in client.events if one["event"] != name]
    return found


def gone(client: Client, name: str) -> bool:
    return events(client, "DEVICE_DELETED") == [{"device": name, "path": f"/machine/peripheral/{name}"}]


def add_memory(client: Client, name: str = "mem0", size: int = 128 * MIB) -> None:
    client.execute("object-add", qom_type="memory-backend-ram", id=name, size=size)


def add_node(client: Client, image: str, name: str = "node0", **more: Any) -> None:
    client.execute(
        "blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": image}, **more
    )


def names(client: Client) -> list[str]:
    (bus,) = client.execute("query-pci")
    return [device["qdev_id"] for device in bus["devices"]]


# --- CPUs -----------------------------------------------------------------------------------------


def test_a_cpu_as_query_hotpluggable_cpus_gives_it(session: PlugSession, client: Client) -> None:
    free = [cpu for cpu in client.execute("query-hotpluggable-cpus") if "qom-path" not in cpu]
    assert [cpu["props"]["core-id"] for cpu in free] == [3, 2, 1]
    client.execute("device_add", driver=free[-1]["type"], id="cpu-1", **free[-1]["props"])
    assert session.event("CPU") == (1, PLUGGED)
    assert [cpu["qom-path"] for cpu in client.execute("query-cpus-fast")] == [
        "/machine/unattached/device[0]",
        "/machine/peripheral/cpu-1",
    ]
    session.report("CPU", 1, 1, 0)
    info = {"device": "cpu-1", "slot": "1", "slot-type": "CPU", "source": 1, "status": 0}
    assert events(client, "ACPI_DEVICE_OST") == [{"info": info}]
    client.execute("device_del", id="cpu-1")
    assert session.event("CPU") == (1, LET_GO)
    session.eject("CPU", 1)
    assert gone(client, "cpu-1")
    assert len(client.execute("query-cpus-fast")) == 1


def test_cpus_of_the_start_go_by_their_path(session: PlugSession) -> None:
    session.close()
    session = PlugSession(replace(CONFIG, cpus=Cpus(2, 4)))
    client = session.connect()
    path = "/machine/unattached/device[1]"
    client.execute("device_del", id=path)
    session.eject("CPU", 1)
    assert events(client, "DEVICE_DELETED") == [{"path": path}]
    session.close()


# --- memory ---------------------------------------------------------------------------------------


def test_memory_comes_and_goes(session: PlugSession, client: Client) -> None:
    add_memory(client, size=256 * MIB)
    client.execute("device_add", driver="pc-dimm", id="dimm0", memdev="mem0")
    assert session.event("MEMORY") == (0, PLUGGED)
    (device,) = client.execute("query-memory-devices")
    expected = {"id": "dimm0", "size": 256 * MIB, "slot": 0, "memdev": "/objects/mem0", "addr": 4 << 30}
    assert device["data"].items() >= expected.items()
    assert client.execute("query-memory-size-summary")["plugged-memory"] == 256 * MIB
    assert "in use" in client.error("object-del", id="mem0")[1]
    client.execute("device_del", id="dimm0")
    session.eject("MEMORY", 0)
    assert gone(client, "dimm0")
    client.execute("object-del", id="mem0")
    assert client.execute("query-memory-devices") == []


def test_memory_of_a_file_system(session: PlugSession, client: Client) -> None:
    given: dict[str, Any] = {"qom_type": "memory-backend-file", "id": "m", "size": 128 * MIB, "share": True}
    assert "must be a directory" in client.error("object-add", **given, mem_path="/etc/passwd")[1]
    client.execute("object-add", **given, mem_path="/dev/shm")
    client.execute("device_add", driver="pc-dimm", id="d", memdev="m")
    assert session.machine.dimms.present[0][1].size == 128 * MIB


def test_a_guest_that_keeps_its_memory_is_told_of_once(session: PlugSession, client: Client) -> None:
    add_memory(client)
    client.execute("device_add", driver="pc-dimm", id="dimm0", memdev="mem0")
    client.execute("device_del", id="dimm0")
    session.report("MEMORY", 0, 3, 0x84)  # it is at it
    assert events(client, "DEVICE_UNPLUG_GUEST_ERROR") == []
    session.report("MEMORY", 0, 3, 1)
    error = {"device": "dimm0", "path": "/machine/peripheral/dimm0"}
    assert events(client, "DEVICE_UNPLUG_GUEST_ERROR") == [error]
    assert [one["device"] for one in events(client, "MEM_UNPLUG_ERROR")] == ["dimm0"]
    for _ in range(1000):
        session.report("MEMORY", 0, 3, 1)
    assert len(events(client, "DEVICE_UNPLUG_GUEST_ERROR")) <= 4
    client.execute("device_del", id="dimm0")
    session.report("MEMORY", 0, 3, 1)
    assert events(client, "DEVICE_UNPLUG_GUEST_ERROR") == [error]


# --- PCI ------------------------------------------------------------------------------------------


def test_a_disk_with_katas_arguments(session: PlugSession, client: Client, image: str) -> None:
    add_node(client, image, "drive-1", read_only=True, cache={"direct": False, "no-flush": False})
    client.execute(
        "device_add",
        driver="virtio-blk-pci",
        id="virtio-drive-1",
        drive="drive-1",
        bus="pcie.0",
        addr="05",
        share_rw="on",
        num_queues="1",
        romfile="",
        disable_modern="false",
    )
    assert session.event("PCI") == (5, PLUGGED)
    path = "/machine/peripheral/virtio-drive-1"
    assert client.execute("qom-get", path=path, property="addr") == 5 << 3
    (block,) = client.execute("query-block")
    assert (block["qdev"], block["inserted"]["node-name"]) == (path, "drive-1")
    assert block["inserted"]["ro"]
    assert client.error("blockdev-del", node_name="drive-1")[1] == "Node drive-1 is in use"
    client.execute("device_del", id="virtio-drive-1")
    assert "virtio-drive-1" in names(client), "the guest has not let go"
    session.eject("PCI", 5)
    assert gone(client, "virtio-drive-1")
    client.execute("blockdev-del", node_name="drive-1")


@pytest.mark.parametrize(("given", "slot"), [("1f", 31), ("1f.0", 31), ("06", 6), (24, 3), (None, 2)])
def test_where_a_device_goes(session: PlugSession, client: Client, given: Any, slot: int) -> None:
    client.execute("object-add", qom_type="rng-random", id="rng", filename="/dev/urandom")
    where: dict[str, Any] = {} if given is None else {"addr": given}
    taken = len(names(client))
    client.execute("device_add", driver="virtio-rng-pci", id="r", rng="rng", **where)
    found = session.event("PCI")
    assert found == ((taken if given is None else slot), PLUGGED)
    assert "in use" in client.error("object-del", id="rng")[1]


def test_the_words_of_nemu_run(session: PlugSession, client: Client, image: str) -> None:
    name = client.execute("x-plug", option="disk", value=f"{image},serial=abc")["id"]
    assert name == "virtio-blk0"
    assert client.error("x-plug", option="disk", value=image)[1].endswith("readonly=on each time")
    client.execute("device_del", id=name)
    session.eject("PCI", session.event("PCI")[0])  # type: ignore[index]
    assert gone(client, name)
    assert client.execute("x-plug", option="disk", value=image)["id"] == name


def test_a_scsi_disk_goes_at_once(tmp_path: Path, image: str) -> None:
    cold = tmp_path / "cold.img"
    cold.write_bytes(bytes(MIB))
    disks = (DiskConfig(str(cold), bus="scsi"),)
    session = PlugSession(MachineConfig(disks=disks, console=ChardevConfig("null")))
    client = session.connect()
    add_node(client, image)
    unit: dict[str, Any] = {"driver": "scsi-hd", "drive": "node0", "bus": "virtio-scsi0.0"}
    assert "already" in client.error("device_add", **unit, id="s", scsi_id=0, lun=0)[1]
    client.execute("device_add", **unit, id="s", scsi_id=3, lun=1)
    assert [block["qdev"] for block in client.execute("query-block")][-1] == "/machine/peripheral/s"
    session.reboot()
    assert "in use" in client.error("blockdev-del", node_name="node0")[1]
    client.execute("device_del", id="s")
    session.loop.until(lambda: not session.inventory._draining)
    assert gone(client, "s")
    client.execute("blockdev-del", node_name="node0")
    for name in ("virtio-blk0", ""):  # the disk that was there from the start has no name to remove it by
        assert client.error("device_del", id=name)[0] == "DeviceNotFound"
    session.close()


# --- what is refused ------------------------------------------------------------------------------

DISK = {"driver": "virtio-blk-pci", "id": "x", "drive": "node0"}
DIMM = {"driver": "pc-dimm", "id": "x", "memdev": "mem0"}
THREAD = {"driver": CPU, "core-id": 1, "socket-id": 0, "thread-id": 0}
FILE = {"driver": "file", "filename": "/nope"}
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("device_add", {}, "GenericError", "Parameter 'driver' is missing"),
    ("device_add", {"driver": "nope"}, "GenericError", "'nope' is not a valid device model name"),
    ("device_add", {"driver": 1}, "GenericError", "Invalid parameter type for 'driver', expected: string"),
    ("device_add", {**DISK, "id": "virtio-console0"}, "GenericError", "Duplicate device ID"),
    ("device_add", {**DISK, "id": "7"}, "GenericError", "Parameter 'id' expects an identifier"),
    ("device_add", {**DISK, "bus": "pci.9"}, "GenericError", "Bus 'pci.9' not found"),
    ("device_add", {**DISK, "addr": "20"}, "GenericError", "Parameter 'addr' expects"),
    ("device_add", {**DISK, "addr": "0"}, "GenericError", "Parameter 'addr' expects"),
    ("device_add", {**DISK, "addr": "3.1"}, "GenericError", "Parameter 'addr' expects"),
    ("device_add", {**DISK, "addr": "1"}, "GenericError", "slot 1 is taken"),
    ("device_add", {**DISK, "drive": "nope"}, "GenericError", "can't find value 'nope'"),
    ("device_add", {"driver": "virtio-blk-pci", "id": "x"}, "GenericError", "drive property not set"),
    ("device_add", {**DISK, "wings": 2}, "GenericError", "Property 'virtio-blk-pci.wings' not found"),
    ("device_add", {**DISK, "num-queues": 0}, "GenericError", "Parameter 'num-queues' expects a number"),
    ("device_add", {**DISK, "serial": "x" * 21}, "GenericError", "at most 20 printable"),
    ("device_add", {**THREAD, "core-id": 0}, "GenericError", "CPU 0 is there already"),
    ("device_add", {**THREAD, "core-id": 4}, "GenericError", "room for 0 to 3"),
    ("device_add", {**THREAD, "socket-id": 1}, "GenericError", "Invalid CPU socket-id"),
    ("device_add", {"driver": CPU}, "GenericError", "Parameter 'core-id' is missing"),
    ("device_add", {**DIMM, "memdev": "nope"}, "DeviceNotFound", "Device 'nope' not found"),
    ("device_add", {**DIMM, "slot": 3}, "GenericError", "slot 3 is taken, or not one of 0 to 2"),
    ("device_add", {"driver": "pc-dimm"}, "GenericError", "Parameter 'memdev' is missing"),
    ("device_add", {"driver": "virtio-net-pci", "netdev": "n"}, "GenericError", "can't find value 'n'"),
    ("device_add", {"driver": "virtio-rng-pci", "rng": "n"}, "DeviceNotFound", "Device 'n' not found"),
    ("device_add", {"driver": "scsi-hd", "drive": "node0"}, "GenericError", "No 'SCSI' bus found"),
    ("device_add", {"driver": "vhost-user-fs-pci", "chardev": "c", "tag": "t"}, "GenericError", "'c'"),
    ("device_del", {"id": "nope"}, "DeviceNotFound", "Device 'nope' not found"),
    ("device_del", {"id": ""}, "DeviceNotFound", "Device '' not found"),
    ("device_del", {"id": "/machine/unattached/device[0]"}, "GenericError", "CPU 0 stays"),
    ("device_del", {"id": "virtio-console0"}, "GenericError", "does not support hotplugging"),
    ("object-add", {"qom-type": "nope", "id": "x"}, "GenericError", "does not accept value 'nope'"),
    ("object-add", {"qom-type": "memory-backend-ram", "id": "x"}, "GenericError", "'size' is missing"),
    ("object-add", {"qom-type": "memory-backend-ram", "id": "x", "size": 1}, "GenericError", "multiple of"),
    ("object-add", {"qom-type": "memory-backend-ram", "id": "mem0", "size": 1}, "GenericError", "duplicate"),
    ("object-add", {"qom-type": "rng-random", "id": "x", "filename": "/etc"}, "GenericError", "expects"),
    ("object-del", {"id": "nope"}, "GenericError", "object 'nope' not found"),
    ("blockdev-add", {"driver": "raw", "file": FILE}, "GenericError", "'node-name' must be specified"),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "x", "file": FILE},
        "GenericError",
        "/nope: no such file",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "node-name": "node0", "file": FILE},
        "GenericError",
        "Duplicate nodes",
    ),
    ("blockdev-add", {"driver": "raw", "node-name": "x"}, "GenericError", "Parameter 'file' is missing"),
    ("blockdev-add", {"driver": "vhdx", "node-name": "x"}, "GenericError", "does not accept value 'vhdx'"),
    ("blockdev-add", {**FILE, "node-name": "x", "cache": {"direct": True}}, "GenericError", "cache.direct"),
    ("blockdev-del", {"node-name": "nope"}, "GenericError", "Failed to find node with node-name='nope'"),
    ("netdev_add", {"type": "tap", "id": "n"}, "GenericError", "needs fds"),
    ("netdev_add", {"type": "tap", "id": "n", "fds": "a:b"}, "GenericError", "named 'a' not found"),
    ("netdev_add", {"type": "tap", "id": "n", "ifname": "nope0"}, "GenericError", "nope0"),
    ("netdev_add", {"type": "vhost-user", "id": "n", "chardev": "c"}, "GenericError", '"c" not found'),
    ("netdev_del", {"id": "nope"}, "DeviceNotFound", "Device 'nope' not found"),
    ("chardev-add", {"id": "c", "backend": 1}, "GenericError", "Invalid parameter type for 'backend'"),
    ("chardev-add", {"id": "c", "backend": {"type": "pty"}}, "GenericError", "expects 'socket'"),
    ("chardev-remove", {"id": "nope"}, "GenericError", "Chardev 'nope' not found"),
    ("x-plug", {"option": "kernel"}, "GenericError", "does not accept value 'kernel'"),
    ("x-plug", {"option": "net", "value": "fd=3"}, "GenericError", "are for blockdev-add"),
    ("x-plug", {"option": "disk", "value": "/nope"}, "GenericError", "no such file"),
]


def test_what_is_wrong_is_refused_and_changes_nothing(
    session: PlugSession, client: Client, image: str
) -> None:
    add_memory(client)
    add_node(client, image)
    queries = ("query-pci", "query-block", "query-cpus-fast", "query-memory-devices", "query-chardev")
    before = [client.execute(name) for name in queries], held(), list(session.inventory.names())
    for name, arguments, kind, text in WRONG:
        answer = client.ask({"execute": name, "arguments": arguments})
        assert "error" in answer, (name, arguments)
        assert answer["error"]["class"] == kind, answer
        assert text in answer["error"]["desc"], answer
    assert ([client.execute(name) for name in queries], held(), list(session.inventory.names())) == before
    assert {session.event(kind) for kind in session.controllers} == {None}


def test_a_machine_without_slots_says_which_option_is_missing(image: str) -> None:
    session = PlugSession(MachineConfig(console=ChardevConfig("null")))
    client = session.connect()
    add_node(client, image)
    add_memory(client)
    for given, option in ((DISK, "--hotplug pci"), (DIMM, "--memory"), (THREAD, "--cpus")):
        request = {"execute": "device_add", "arguments": given}
        assert option in client.ask(request)["error"]["desc"]
    session.close()


def test_descriptors_that_are_no_tap_are_closed(session: PlugSession, client: Client) -> None:
    before = held()
    read, write = os.pipe()
    for name, fd in (("a", read), ("b", write)):
        assert client.execute("getfd", fdname=name, fds=[fd]) == {}
    os.close(read)
    os.close(write)
    assert "is not a tap" in client.error("netdev_add", type="tap", id="n", fds="a", vhostfds="b")[1]
    assert held() == before


def test_a_socket_is_there_while_something_is_on_it(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        data = {"addr": {"type": "unix", "data": {"path": path}}, "server": False}
        client.execute("chardev-add", id="c", backend={"type": "socket", "data": data})
        assert "already exists" in client.error("chardev-add", id="c", backend={})[1]
        shown = [one for one in client.execute("query-chardev") if one["label"] == "c"]
        assert shown == [{"label": "c", "filename": f"unix:{path}", "frontend-open": False}]
        client.execute("chardev-remove", id="c")


# --- over reboots ---------------------------------------------------------------------------------


def test_a_reboot_keeps_what_came_and_not_what_went(session: PlugSession, client: Client, image: str) -> None:
    add_memory(client)
    add_node(client, image)
    client.execute("device_add", driver="pc-dimm", id="dimm0", memdev="mem0", slot=2)
    client.execute("device_add", driver="virtio-blk-pci", id="blk", drive="node0", addr="9")
    for number in (2, 3):
        client.execute("device_add", driver=CPU, id=f"cpu-{number}", core_id=number)
    client.execute("device_del", id="cpu-2")
    client.execute("device_del", id="virtio-rng0")
    session.eject("CPU", 2)
    session.eject("PCI", 2)
    queries = ("query-block", "query-cpus-fast", "query-memory-devices", "query-hotpluggable-cpus")
    before = [client.execute(name) for name in queries], names(client)
    session.reboot()
    assert ([client.execute(name) for name in queries], names(client)) == before
    assert names(client) == ["", "virtio-console0", "blk"]
    assert list(session.machine.cpus.present) == [0, 3]
    for kind, slot, state in (("CPU", 3, 0x0F), ("CPU", 2, 0), ("MEMORY", 2, 0x0F), ("PCI", 9, 0x0F)):
        assert session.controllers[kind].read(0x400 + slot, 1) == state
    assert {session.event(kind) for kind in session.controllers} == {None}, "it is there from the start"
    client.execute("device_del", id="blk")
    session.eject("PCI", 9)
    client.execute("blockdev-del", node_name="node0")


def test_a_guest_that_lets_go_of_what_nobody_asked_for(session: PlugSession, client: Client) -> None:
    for kind, slots in (("PCI", range(300)), ("CPU", range(300)), ("MEMORY", range(300))):
        for slot in slots:
            session.eject(kind, slot)
    assert names(client) == ["", "virtio-console0"], "the console stays; the entropy device may go"
    assert list(session.machine.cpus.present) == [0]
    session.reboot()
    assert names(client) == ["", "virtio-console0"]


# --- nothing leaks --------------------------------------------------------------------------------


def cycle_cpu(session: PlugSession, client: Client, image: str) -> None:
    client.execute("device_add", driver=CPU, id="x", core_id=1)
    client.execute("device_del", id="x")
    session.eject("CPU", 1)


def cycle_memory(session: PlugSession, client: Client, image: str) -> None:
    add_memory(client, "m")
    client.execute("device_add", driver="pc-dimm", id="x", memdev="m")
    client.execute("device_del", id="x")
    session.eject("MEMORY", 0)
    client.execute("object-del", id="m")


def cycle_disk(session: PlugSession, client: Client, image: str) -> None:
    add_node(client, image, "n")
    client.execute("device_add", driver="virtio-blk-pci", id="x", drive="n")
    client.execute("device_del", id="x")
    session.eject("PCI", 3)
    client.execute("blockdev-del", node_name="n")


def cycle_own_disk(session: PlugSession, client: Client, image: str) -> None:
    client.execute("device_del", id=client.execute("x-plug", option="disk", value=image)["id"])
    session.eject("PCI", 3)


def cycle_entropy(session: PlugSession, client: Client, image: str) -> None:
    client.execute("device_add", driver="virtio-rng-pci", id="x")
    client.execute("device_del", id="x")
    session.eject("PCI", 3)


def test_two_hundred_times_leave_nothing(session: PlugSession, client: Client, image: str) -> None:
    def state() -> tuple[Any, ...]:
        gc.collect()
        ram = session.machine.ram
        lengths = [len(one) for one in (ram.regions, ram._watchers, ram._readable, session.machine.devices)]
        return held(), lengths, names(client), list(session.inventory.names()), len(session.loop.readers)

    for cycle in (cycle_cpu, cycle_memory, cycle_disk, cycle_own_disk, cycle_entropy):
        cycle(session, client, image)
        before = state()
        for _ in range(200):
            cycle(session, client, image)
            client.events.clear()
        assert state() == before, cycle.__name__
