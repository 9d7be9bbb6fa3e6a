"""``nemu doctor``: what this host offers, for people or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from nemu.host.doctor import Diagnosis, diagnose

_DESCRIPTION = """\
Tell what this host offers to nemu, with a remedy for each miss. The exit status is 0 when
`nemu run` works here, on KVM or in the emulated host, else 1."""

_VERDICTS = {
    "native": "nemu run works here, on KVM.",
    "emulated": "nemu run works here, in the emulated host: all is the same, only slower.",
    "": "nemu run does not work here yet: see the remedies.",
}


def register(subparsers: Any, name: str) -> None:
    """Add ``doctor`` to the commands."""
    parser = subparsers.add_parser(
        name, help="tell what this host offers and what to do about a miss", description=_DESCRIPTION
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis."""
    diagnosis = diagnose()
    sys.stdout.write(as_json(diagnosis) if arguments.json else "".join(lines(diagnosis)))
    return 0 if diagnosis.host else 1


def as_json(diagnosis: Diagnosis) -> str:
    """``{"host": ..., "findings": [{"name", "purpose", "ok", "detail", "remedy"}, ...]}``."""
    import json

    findings = [finding._asdict() for finding in diagnosis.findings]
    return json.dumps({"host": diagnosis.host, "findings": findings}, indent=2) + "\n"


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis as text, one purpose after the other."""
    width = max(len(finding.name) for finding in diagnosis.findings)
    purpose = ""
    for finding in diagnosis.findings:
        if finding.purpose != purpose:
            purpose = finding.purpose
            yield f"{purpose}\n"
        state = "ok" if finding.ok else "missing"
        yield f"  {state:8}{finding.name:{width}}  {finding.detail}\n"
        if finding.remedy:
            yield f"          {'':{width}}  -> {finding.remedy}\n"
    yield f"\n{_VERDICTS[diagnosis.host]}\n"
