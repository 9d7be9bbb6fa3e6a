"""docs/qmp.md tells of every command and event."""

from __future__ import annotations

import re
from pathlib import Path

from nemu.qmp import registry, schema
from nemu.qmp.events import EVENTS

DOCUMENT = Path(__file__).parents[3] / "docs/qmp.md"


def rows() -> list[str]:
    """The tables as they must be."""
    lines = []
    for name, one in sorted(registry.commands().items()):
        members = schema.members(one.arguments)
        arguments = ", ".join(f"`{member.name}`{'?' if member.optional else ''}" for member in members)
        lines.append(f"| `{name}` | {arguments} | {one.doc} |")
    for name, event in sorted(EVENTS.items()):
        data = ", ".join(f"`{member.name}`" for member in schema.members(event.data))
        lines.append(f"| `{name}` | {data} | {event.doc} |")
    return lines


def test_its_tables_are_those_of_the_registry() -> None:
    text = DOCUMENT.read_text().partition("\n## Commands\n")[2]
    found = re.findall(r"^\| `.*$", text, re.MULTILINE)
    assert found == rows(), "docs/qmp.md must have these rows:\n" + "\n".join(rows())
