"""``--fs``."""

from __future__ import annotations

from typing import NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

TAG_MAX = 36  # bytes (virtio 1.2, 5.11.4)
CACHES = ("auto", "always", "never")


class FsConfig(NamedTuple):
    """A virtio-fs device, which the guest mounts as ``tag``.

    Its files are those of ``dir``, by a virtiofsd that nemu starts, or what the one at ``socket`` shares.
    ``cache`` is how long the guest trusts what it has read: "auto" for a second, "always", "never".
    """

    tag: str
    socket: str = ""
    dir: str = ""
    readonly: bool = False
    cache: str = "auto"

    @property
    def option(self) -> str:
        """What messages call it."""
        return f"--fs tag={self.tag}"

    @classmethod
    def read(cls, value: object) -> FsConfig:
        """From ``tag=TAG,socket=SOCKET|dir=DIR[,readonly=on|off][,cache=MODE]`` or a table of these."""
        if isinstance(value, str):
            value = pairs(syntax.properties(value))
        given = table(
            value,
            tag=_tag,
            socket=syntax.path,
            dir=syntax.path,
            readonly=syntax.switch,
            cache=syntax.choice(*CACHES),
        )
        if "tag" not in given or ("socket" in given) == ("dir" in given):
            raise ValueError("must be tag=TAG with socket=SOCKET or dir=DIR")
        if "socket" in given and len(given) > 2:
            raise ValueError("readonly and cache go with dir=DIR; the virtiofsd at a socket has its own")
        return cls(**given)


def _tag(value: object) -> str:
    tag = syntax.text(value)
    if not 1 <= len(tag.encode()) <= TAG_MAX or not tag.isprintable():
        raise ValueError(f"must have 1 to {TAG_MAX} bytes")
    return tag
