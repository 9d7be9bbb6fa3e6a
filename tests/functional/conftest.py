"""Fixtures of the functional tests: real kernels on a real KVM, inside an emulated host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from functional.rig import Rig


@pytest.fixture(scope="module")
def host() -> Iterator[Rig]:
    """An emulated host of this test module's own."""
    with Rig() as rig:
        yield rig
