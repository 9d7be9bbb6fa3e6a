"""Hand-assembled guests on this machine's /dev/kvm, even where it only interprets."""

from __future__ import annotations

import functools
import json
import os

import pytest

from nemu.errors import HostError
from tiny.cases import CASES
from tiny.run import complaints, physical_bits, run_case

# Every run tries other values; NEMU_SEED repeats one that failed.
SEED = int(os.environ.get("NEMU_SEED") or int.from_bytes(os.urandom(4), "little"))


@pytest.fixture(scope="module", autouse=True)
def _kvm() -> None:
    try:
        physical_bits()
    except HostError as error:
        pytest.skip(f"{error}; tests/functional runs these guests in an emulated host")


@functools.cache
def baseline() -> int:
    """KiB of our memory with a guest that only behaves."""
    return int(run_case("nothing", 0)["report"]["memory"]["pss_kib"])


@pytest.mark.parametrize("name", CASES)
def test_the_guest_is_answered_and_nothing_is_left(name: str) -> None:
    result = run_case(name, SEED)
    wrong = complaints(name, result, baseline())
    assert not wrong, f"NEMU_SEED={SEED}: {wrong}\n{json.dumps(result, indent=1)}"
