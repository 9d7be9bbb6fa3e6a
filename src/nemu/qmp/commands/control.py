"""The protocol itself: negotiation, and what there is."""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Annotated, Any, NamedTuple

from nemu.qmp import registry
from nemu.qmp.events import EVENTS
from nemu.qmp.registry import Call, command
from nemu.qmp.schema import Introspection
from nemu.qmp.version import VERSION, VersionInfo


class Capability(Enum):
    """QMPCapability."""

    OOB = "oob"


class Capabilities(NamedTuple):
    enable: Annotated[list[Capability] | None, "capabilities of the greeting to use"] = None


class Name(NamedTuple):
    name: Annotated[str, "the name"]


class MetaType(Enum):
    """SchemaMetaType."""

    BUILTIN = "builtin"
    ENUM = "enum"
    ARRAY = "array"
    OBJECT = "object"
    COMMAND = "command"
    EVENT = "event"


class SchemaInfo(NamedTuple):
    """What QEMU has as a union; which members are there depends on ``meta_type``."""

    name: Annotated[str, "how others refer to it"]
    meta_type: Annotated[MetaType, "what it is"]
    json_type: Annotated[str | None, "of a builtin: the type in JSON"] = None
    values: Annotated[list[str] | None, "of an enum: its values"] = None
    members: Annotated[list[Any] | None, "of an object or an enum: its members"] = None
    element_type: Annotated[str | None, "of an array: the name of its elements' type"] = None
    arg_type: Annotated[str | None, "of a command or event: the name of its arguments' type"] = None
    ret_type: Annotated[str | None, "of a command: the name of its result's type"] = None
    allow_oob: Annotated[bool | None, "of a command: it may be asked for out of band"] = None


@command("qmp_capabilities")
def qmp_capabilities(call: Call, arguments: Capabilities) -> None:
    """Begin: ends the negotiation, before which no other command is accepted."""
    call.connection.negotiated = True
    call.connection.oob = Capability.OOB in (arguments.enable or ())


@command("query-version", oob=True)
def query_version(call: Call) -> VersionInfo:
    """The release of QEMU whose protocol this follows, and nemu's own."""
    return VERSION


@command("query-commands")
def query_commands(call: Call) -> list[Name]:
    """Every command."""
    return [Name(name) for name in registry.commands()]


@command("query-events")
def query_events(call: Call) -> list[Name]:
    """Every event."""
    return [Name(name) for name in EVENTS]


@command("query-qmp-schema")
def query_qmp_schema(call: Call) -> list[SchemaInfo]:
    """Every command and event with the types of its arguments and its result."""
    return introspect()  # type: ignore[return-value]  # such objects, in JSON already


@cache
def introspect() -> list[dict[str, Any]]:
    """The entities of query-qmp-schema."""
    schema = Introspection()
    for name, one in registry.commands().items():
        types = {"arg-type": schema.type_name(one.arguments), "ret-type": schema.type_name(one.result)}
        schema.add(name, "command", **types, **({"allow-oob": True} if one.oob else {}))
    for name, event in EVENTS.items():
        schema.add(name, "event", **{"arg-type": schema.type_name(event.data)})
    return schema.entities
