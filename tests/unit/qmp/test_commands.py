"""Each command on a machine that a test made, and the schema beside QEMU's own."""

from __future__ import annotations

import inspect
import json
import pkgutil
import shutil
import subprocess
from functools import cache
from importlib import import_module
from typing import Any

import pytest

import nemu.vhost
import nemu.virtio
from fakes.qmp import FakeBalloon, FakeSession
from nemu.qmp import registry, schema
from nemu.qmp.commands.control import introspect
from nemu.qmp.commands.objects import DRIVERS, OTHER_DRIVER, TYPES, ancestors
from nemu.qmp.events import EVENTS
from nemu.virtio.device import VirtioDevice


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


# --- what they do -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked"),
    [("system_reset", "reset"), ("system_powerdown", "power_down"), ("quit", "quit"), ("inject-nmi", "nmi")],
)
def test_the_machine_is_asked(session: FakeSession, name: str, asked: str) -> None:
    assert session.connect().execute(name) == {}
    assert session.asked == [asked]


def test_stop_and_cont_show_in_the_status(session: FakeSession) -> None:
    client = session.connect()
    client.execute("stop")
    assert client.execute("query-status") == {"running": False, "status": "paused"}
    client.execute("cont")
    assert client.execute("query-status") == {"running": True, "status": "running"}


def test_what_the_machine_is(session: FakeSession) -> None:
    client = session.connect()
    assert client.execute("query-name") == {"name": "fake"}
    assert client.execute("query-kvm") == {"enabled": True, "present": True}
    assert client.execute("query-target") == {"arch": "x86_64"}
    assert client.execute("query-migrate") == {"status": "none"}
    assert client.execute("query-memory-size-summary") == {"base-memory": 512 << 20, "plugged-memory": 0}
    cpus = client.execute("query-cpus-fast")
    assert [(cpu["cpu-index"], cpu["thread-id"], cpu["props"]["core-id"]) for cpu in cpus] == [
        (0, 1000, 0),
        (1, 1001, 1),
    ]
    assert client.execute("query-memory-devices") == []
    assert [cpu["qom-path"] for cpu in client.execute("query-hotpluggable-cpus")] == [
        "/machine/unattached/device[1]",
        "/machine/unattached/device[0]",
    ]


def test_what_is_attached(session: FakeSession) -> None:
    client = session.connect()
    (block,) = client.execute("query-block")
    inserted = block["inserted"]
    assert (inserted["node-name"], inserted["file"], inserted["ro"]) == ("disk0", "/d.img", False)
    assert client.execute("qom-get", path=block["qdev"], property="type") == "virtio-blk-pci"
    assert inserted["image"]["virtual-size"] == 4096
    assert client.execute("query-chardev") == [
        {"label": "console", "filename": "stdio", "frontend-open": True}
    ]
    (bus,) = client.execute("query-pci")
    bridge, disk, entropy = bus["devices"]
    assert bridge["class_info"] == {"class": 0x600, "desc": "Host bridge"}
    assert (disk["slot"], disk["qdev_id"], disk["id"]["device"]) == (1, "virtio-blk0", 0x1042)
    region = {"bar": 0, "type": "memory", "size": 0x4000, "prefetch": False, "mem_type_64": True}
    assert disk["regions"] == [{**region, "address": 0x8000_0000}]
    assert entropy["regions"] == [{**region, "address": -1}]


def test_a_balloon_is_asked_where_there_is_one(session: FakeSession) -> None:
    client = session.connect()
    missing = ("DeviceNotActive", "No balloon device has been activated")
    assert client.error("query-balloon") == client.error("balloon", value=1 << 20) == missing
    session.machine.balloon = FakeBalloon()
    assert client.execute("query-balloon") == {"actual": 512 << 20}
    client.execute("balloon", value=256 << 20)
    assert client.execute("query-balloon") == {"actual": 256 << 20}
    for value in (0, -1, (512 << 20) + 1):
        assert client.error("balloon", value=value)[0] == "GenericError"
    assert session.machine.balloon.actual == 256 << 20


def test_the_tree_of_objects(session: FakeSession) -> None:
    client = session.connect()

    def children(path: str) -> dict[str, str]:
        return {one["name"]: one["type"] for one in client.execute("qom-list", path=path)}

    assert children("/")["machine"] == "child<virt-machine>"
    assert children("/machine/peripheral")["virtio-blk0"] == "child<virtio-blk-pci>"
    assert "virtio-rng0" in children("/machine/peripheral/")
    device = "/machine/peripheral/virtio-rng0"
    for name, kind in children(device).items():
        value = client.execute("qom-get", path=device, property=name)
        expected = {"bool": bool, "int32": int}.get(kind, str)
        assert isinstance(value, expected), name
    assert client.execute("qom-get", path=device, property="addr") == 2 << 3
    bus = client.execute("qom-get", path=device, property="parent_bus")
    assert client.execute("qom-get", path=bus, property="type") == "PCIE"
    assert client.execute("qom-get", path="/machine", property="peripheral") == "/machine/peripheral"
    for cpu in client.execute("query-cpus-fast"):
        core = client.execute("qom-get", path=cpu["qom-path"], property="core-id")
        assert core == cpu["props"]["core-id"]
    for path in ("", "machine", "/nope", "/machine/peripheral/x"):
        assert client.error("qom-list", path=path) == ("DeviceNotFound", f"Device '{path}' not found")
    assert client.error("qom-get", path="/machine", property="nope")[1] == (
        "Property 'virt-machine.nope' not found"
    )


def test_types_of_objects(session: FakeSession) -> None:
    client = session.connect()
    found = client.execute("qom-list-types", implements="virtio-pci")
    assert {one["name"] for one in found} == {*DRIVERS.values(), OTHER_DRIVER}
    assert {one["name"] for one in client.execute("qom-list-types", abstract=True)} == set(TYPES)
    assert not any(one.get("abstract") for one in client.execute("qom-list-types"))
    assert "addr" in {
        one["name"] for one in client.execute("device-list-properties", typename="virtio-blk-pci")
    }
    assert client.error("device-list-properties", typename="nope") == (
        "DeviceNotFound",
        "Device 'nope' not found",
    )
    assert client.error("device-list-properties", typename="container")[0] == "GenericError"
    assert client.error("qom-list-properties", typename="nope") == (
        "DeviceNotFound",
        "Class 'nope' not found",
    )
    assert all("object" in ancestors(name) for name in TYPES)


def test_every_virtio_device_has_its_driver_name() -> None:
    kinds = set()
    for package in (nemu.virtio, nemu.vhost):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for _, kind in inspect.getmembers(import_module(found.name), inspect.isclass):
                if issubclass(kind, VirtioDevice) and hasattr(kind, "device_id"):
                    kinds.add(kind.device_id)
    assert kinds <= set(DRIVERS)


def test_options_of_nemu_run_are_told_with_their_keys(session: FakeSession) -> None:
    client = session.connect()
    (disk,) = client.execute("query-command-line-options", option="disk")
    types = {one["name"]: one["type"] for one in disk["parameters"]}
    assert types.items() >= {"readonly": "boolean", "serial": "string", "queues": "number"}.items()
    assert client.error("query-command-line-options", option="nope")[1] == "invalid option name: nope"
    assert len(client.execute("query-command-line-options")) > 10


def test_the_cpu_model_is_the_hosts(session: FakeSession) -> None:
    client = session.connect()
    (model,) = client.execute("query-cpu-definitions")
    answer = client.execute("query-cpu-model-expansion", type="full", model={"name": model["name"]})
    assert answer == {"model": {"name": "host", "props": {}}}
    error = client.error("query-cpu-model-expansion", type="static", model={"name": "nope"})
    assert error == ("GenericError", "CPU model 'nope' not found")


def test_what_there_is_not_is_not_pretended(session: FakeSession) -> None:
    client = session.connect()
    for name in ("migrate", "human-monitor-command", "chardev-change", "screendump"):
        assert client.error(name) == ("CommandNotFound", f"The command {name} has not been found")


# --- what is said about them --------------------------------------------------------------------


@cache
def qemu(machine: str, *commands: str) -> list[Any]:
    """The results of QEMU itself."""
    program = shutil.which("qemu-system-x86_64")
    assert program, "this test needs the package qemu-system-x86"
    requests = [json.dumps({"execute": name}) for name in ("qmp_capabilities", *commands, "quit")]
    done = subprocess.run(
        [program, "-S", "-nodefaults", "-no-user-config", "-display", "none", "-M", machine, "-qmp", "stdio"],
        input="\n".join(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [one["return"] for one in answers if "return" in one][1:-1]


def by_name(entities: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {one["name"]: one for one in entities}
    assert len(found) == len(entities), "a name twice"
    return found


def test_the_schema_holds_together() -> None:
    """The rules of QEMU's qapi/introspect.json."""
    entities = by_name(introspect())
    needed = {
        "builtin": {"json-type"},
        "enum": {"values", "members"},
        "array": {"element-type"},
        "object": {"members"},
        "command": {"arg-type", "ret-type"},
        "event": {"arg-type"},
    }
    used = set()
    for entity in entities.values():
        details = set(entity) - {"name", "meta-type"}
        assert details - {"allow-oob"} == needed[entity["meta-type"]]
        used |= {entity[key] for key in ("element-type", "arg-type", "ret-type") if key in entity}
        for member in entity["members"] if entity["meta-type"] == "object" else ():
            assert set(member) - {"default"} == {"name", "type"}
            assert member.get("default") is None
            used.add(member["type"])
        if "arg-type" in entity:
            assert entities[entity["arg-type"]]["meta-type"] == "object"
    types = {name for name, one in entities.items() if one["meta-type"] not in ("command", "event")}
    assert used == types, "each type that is named is there, and none for nothing"
    assert all(
        name[0].isdigit() or name[0] == "[" or name in ("str", "int", "bool", "number", "any")
        for name in types
    )
    commands = {name for name, one in entities.items() if one["meta-type"] == "command"}
    assert commands == set(registry.commands())
    assert {name for name, one in entities.items() if one["meta-type"] == "event"} == set(EVENTS)


# Of the protocol before QEMU 6 and after 10.1, which the QEMU here does not have.
OTHER_RELEASES = {"query-events", "query-accelerators"}
# Of nemu's own.
OWN = {"x-plug"}
# Where ours says less than QEMU's union does.
LOOSER = {"query-memory-devices", "query-qmp-schema"}


def shape(entities: dict[str, dict[str, Any]], name: str, depth: int = 6) -> Any:
    """A type as nested data, of an object only its members."""
    entity = entities[name]
    match entity["meta-type"]:
        case "builtin":
            return entity["json-type"]
        case "enum":
            return frozenset(entity["values"])
        case "array":
            return [shape(entities, entity["element-type"], depth)]
        case "object" if depth:
            return {
                one["name"]: (shape(entities, one["type"], depth - 1), "default" in one)
                for one in entity["members"]
            }
        case _:
            return "value"


def problems(ours: Any, theirs: Any, *, given: bool, where: str = "") -> list[str]:
    """Why a client of ``theirs`` could not use ``ours``; ``given`` by the client, or by the server."""
    if "value" in (ours, theirs):
        return []
    if isinstance(ours, frozenset) and isinstance(theirs, frozenset):
        return [f"{where}: {ours - theirs}"] if ours - theirs else []
    if isinstance(ours, list) and isinstance(theirs, list):
        return problems(ours[0], theirs[0], given=given, where=f"{where}[]")
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        same = ours == theirs or (theirs == "string" and isinstance(ours, frozenset))
        return [] if same else [f"{where}: {ours} is not {theirs}"]
    found = []
    for name, (kind, optional) in ours.items():
        if name not in theirs:
            found += [] if optional or not given else [f"{where}.{name} is needed and unknown there"]
            continue
        their_kind, their_optional = theirs[name]
        if given and their_optional and not optional:
            found.append(f"{where}.{name} is needed here only")
        found += problems(kind, their_kind, given=given, where=f"{where}.{name}")
    if not given:
        found += [
            f"{where}.{name} is missing"
            for name, (_, optional) in theirs.items()
            if name not in ours and not optional
        ]
    return found


# Members that newer releases of QEMU do not have any more.
DROPPED = {"query-status.singlestep is missing"}


@pytest.mark.parametrize("name", sorted(set(registry.commands()) - OTHER_RELEASES - OWN - LOOSER))
def test_a_command_is_as_qemu_has_it(name: str) -> None:
    ours, theirs = by_name(introspect()), by_name(qemu("none", "query-qmp-schema")[0])
    assert theirs[name]["meta-type"] == "command"
    found = []
    for key, given in (("arg-type", True), ("ret-type", False)):
        mine, their = shape(ours, ours[name][key]), shape(theirs, theirs[name][key])
        found += problems(mine, their, given=given, where=name)
    assert set(found) - DROPPED == set()


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_event_is_as_qemu_has_it(name: str) -> None:
    ours, theirs = by_name(introspect()), by_name(qemu("none", "query-qmp-schema")[0])
    mine, their = shape(ours, ours[name]["arg-type"]), shape(theirs, theirs[name]["arg-type"])
    assert problems(mine, their, given=False, where=name) == []


def fits(entities: dict[str, dict[str, Any]], name: str, value: Any) -> bool:
    """Whether ``value`` is of the type ``name``."""
    entity = entities[name]
    match entity["meta-type"]:
        case "builtin":
            kinds: dict[str, Any] = {"string": str, "int": int, "boolean": bool, "number": float}
            kind = kinds.get(entity["json-type"], object)
            return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        case "enum":
            return value in entity["values"]
        case "array":
            return isinstance(value, list) and all(
                fits(entities, entity["element-type"], one) for one in value
            )
    members = {one["name"]: one for one in entity["members"]}
    needed = {one for one, member in members.items() if "default" not in member}
    return needed <= set(value) <= set(members) and all(
        fits(entities, members[one]["type"], value[one]) for one in value
    )


def test_answers_are_what_the_schema_says(session: FakeSession) -> None:
    client = session.connect()
    entities = by_name(client.execute("query-qmp-schema"))
    session.machine.balloon = FakeBalloon()
    queries = [
        name
        for name, one in registry.commands().items()
        if name.startswith("query-") and all(member.optional for member in schema.members(one.arguments))
    ]
    assert len(queries) > 20
    for name in queries:
        assert fits(entities, entities[name]["ret-type"], client.execute(name)), name


def test_each_command_and_argument_is_explained() -> None:
    for name, one in registry.commands().items():
        assert one.doc.endswith("."), name
        for kind in (one.arguments, one.result):
            for member in schema.members(kind) if schema.is_object(kind) else ():
                assert member.doc, f"{name} {member.name}"
