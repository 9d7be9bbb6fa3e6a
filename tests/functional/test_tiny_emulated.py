"""The hostile tiny guests on the KVM of an emulated host, where guest code runs and is not interpreted."""

from __future__ import annotations

import json
import os

import pytest

from functional.rig import Rig
from tiny.cases import CASES
from tiny.run import complaints

# Every run tries other values; NEMU_SEED repeats one that failed.
SEED = int(os.environ.get("NEMU_SEED") or int.from_bytes(os.urandom(4), "little"))


@pytest.fixture(scope="module")
def baseline(host: Rig) -> int:
    """KiB of nemu's memory with a guest that only behaves."""
    result = host.call("tiny.run:run_case", {"name": "nothing", "seed": 0})
    return int(result["report"]["memory"]["pss_kib"])


@pytest.mark.parametrize("name", CASES)
def test_the_guest_is_answered_and_leaves_nothing(host: Rig, baseline: int, name: str) -> None:
    result = host.call("tiny.run:run_case", {"name": name, "seed": SEED}, timeout=170)
    wrong = complaints(name, result, baseline)
    assert not wrong, f"NEMU_SEED={SEED}: {wrong}\n{json.dumps(result, indent=1)}"
