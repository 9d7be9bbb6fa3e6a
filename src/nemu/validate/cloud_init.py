"""``--cloud-init``."""

from __future__ import annotations

from nemu import cidata


def check(directory: str) -> None:
    """Raise ConfigError unless ``directory`` has a seed."""
    cidata.read(directory)
