"""The ACPICA compiler as an oracle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Header bytes that iasl fills in itself: checksum, compiler id and revision.
_COMPILER_OWNED = {9, *range(28, 36)}


def iasl(*arguments: str, cwd: Path) -> str:
    """Run iasl in ``cwd``; its output.  Any error, warning or remark fails the test."""
    program = shutil.which("iasl")
    if program is None:
        pytest.fail("iasl is missing: install acpica-tools", pytrace=False)
    run = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    complaints = ("Error ", "Warning ", "Remark ", "Invalid", "Could not")
    assert not any(complaint in run.stdout for complaint in complaints), run.stdout
    return run.stdout


def without_compiler(table: bytes) -> bytes:
    """``table`` with what iasl writes about itself blanked."""
    return bytes(0 if index in _COMPILER_OWNED else byte for index, byte in enumerate(table))
