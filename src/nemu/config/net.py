"""``--net``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nemu import syntax
from nemu.config.setting import pairs, table

TAP_NAME_MAX = 15  # IFNAMSIZ less the terminator
# Two vectors for each, one for the control queue and one for changes: the 128 of our MSI-X table.
QUEUES_MAX = 63
PROTOCOLS = ("tcp", "udp")
_BACKENDS = ("tap", "fd", "fds", "user", "vhost-user")
_ONLY_WITH = {"queues": ("tap",), "vhost": ("tap", "fd"), "vhostfds": ("tap", "fd"), "forward": ("user",)}
_NO_BACKEND = "must be tap=NAME, fd=N, fds=N:N, user or vhost-user=SOCKET"


class Forward(NamedTuple):
    """``port`` of this host, at ``address`` ("": at every one), leads to ``guest_port`` of the guest."""

    protocol: str
    address: str
    port: int
    guest_port: int

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return ":".join(filter(None, (self.protocol, address, str(self.port), str(self.guest_port))))

    def clashes(self, other: Forward) -> bool:
        """Whether both want the same port of this host."""
        same_address = self.address == other.address or not (self.address and other.address)
        return same_address and (self.protocol, self.port) == (other.protocol, other.port)

    @classmethod
    def read(cls, value: object) -> Forward:
        """From ``tcp:8080:80`` or ``udp:127.0.0.1:53:5353``; an IPv6 address stands in brackets."""
        protocol, _, rest = syntax.text(value).partition(":")
        head, _, guest_port = rest.rpartition(":")
        address, _, port = head.rpartition(":")
        if protocol not in PROTOCOLS or not head:
            raise ValueError("must be tcp or udp with two ports, as in tcp:8080:80 or tcp:127.0.0.1:8080:80")
        number = syntax.integer(1, 65535)
        try:
            return cls(protocol, _ip_address(address) if address else "", number(port), number(guest_port))
        except ValueError as error:
            raise ValueError(f"{value} {error}") from None


class NetConfig(NamedTuple):
    """A virtio-net device.  ``backend`` is "tap", "fd" (open taps), "user" (passt) or "vhost-user".

    ``vhost`` is "on", "off" or "auto": whether the host kernel moves the packets.  ``fds`` and ``vhostfds``
    have a descriptor for each queue pair.
    """

    backend: str
    tap: str = ""
    fds: tuple[int, ...] = ()
    queues: int = 1
    vhost: str = "auto"
    vhostfds: tuple[int, ...] = ()
    socket: str = ""  # of the vhost-user back end
    forward: tuple[Forward, ...] = ()
    mac: str = ""  # "": a stable locally administered address, different for each device

    def __str__(self) -> str:
        """As a user would write the backend."""
        match self.backend:
            case "tap":
                return f"tap={self.tap}"
            case "fd":
                return f"{'fds' if len(self.fds) > 1 else 'fd'}={':'.join(map(str, self.fds))}"
            case "vhost-user":
                return f"vhost-user={self.socket}"
        return self.backend

    @classmethod
    def read(cls, value: object) -> NetConfig:
        """From ``tap=NAME|fd=N|fds=N:N|user|vhost-user=SOCKET[,KEY=VALUE]`` or a table with these keys.

        In the table it is ``user = true``.
        """
        if isinstance(value, str):
            value = _table(value)
        given = table(
            value,
            tap=_tap_name,
            fd=syntax.integer(0, syntax.FD_MAX),
            fds=_descriptors,
            user=syntax.switch,
            queues=syntax.integer(1, QUEUES_MAX),
            vhost=_vhost,
            vhostfds=_descriptors,
            forward=_forwards,
            mac=syntax.mac_address,
            **{"vhost-user": syntax.path},
        )
        if not given.pop("user", True):
            raise ValueError("user can only be on")
        backends = set(_BACKENDS) & set(value if isinstance(value, Mapping) else ())
        if len(backends) != 1:
            raise ValueError(_NO_BACKEND)
        if "fd" in given:
            given["fds"] = (given.pop("fd"),)
        backend = backends.pop().removesuffix("s")
        return cls(backend=backend, socket=given.pop("vhost-user", ""), **given)._consistent(given)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> NetConfig:
        """The inverse of ``_asdict``, also after JSON, which has no tuples."""
        tuples = {key: tuple(values[key]) for key in ("fds", "vhostfds")}
        return cls(**{**values, **tuples, "forward": tuple(Forward(*one) for one in values["forward"])})

    def _consistent(self, given: Mapping[str, object]) -> NetConfig:
        """Itself; ValueError for keys that do not go together."""
        for key, backends in _ONLY_WITH.items():
            if key in given and self.backend not in backends:
                raise ValueError(f"{key} does not go with {self}")
        pairs = len(self.fds) or self.queues
        if len(self.vhostfds) not in (0, pairs):
            raise ValueError(f"vhostfds has {len(self.vhostfds)}, must have {pairs}: one for each queue pair")
        if self.vhost == "off" and (pairs > 1 or self.vhostfds):
            raise ValueError("vhost=off goes with one queue pair and without vhostfds")
        return self


def _table(text: str) -> dict[str, Any]:
    """The parts of ``text``; ``forward`` may be there more than once."""
    parts = syntax.properties(text)
    if parts[0].partition("=")[0] not in _BACKENDS:
        raise ValueError(_NO_BACKEND)
    forwards = [part.removeprefix("forward=") for part in parts if part.startswith("forward=")]
    given: dict[str, Any] = dict(
        pairs("user=on" if part == "user" else part for part in parts if not part.startswith("forward="))
    )
    return {**given, "forward": forwards} if forwards else given


def _tap_name(value: object) -> str:
    name = syntax.text(value)
    if not 1 <= len(name.encode()) <= TAP_NAME_MAX or "/" in name or any(c.isspace() for c in name):
        raise ValueError(f"must be an interface name of 1 to {TAP_NAME_MAX} bytes")
    return name


def _descriptors(value: object) -> tuple[int, ...]:
    """``3:4``, or a list of numbers."""
    parts = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, list) or not 1 <= len(parts) <= QUEUES_MAX:
        raise ValueError(f"must be 1 to {QUEUES_MAX} descriptors, as in 3:4")
    fds = tuple(map(syntax.integer(0, syntax.FD_MAX), parts))
    if len(set(fds)) < len(fds):
        raise ValueError("has the same descriptor twice")
    return fds


def _vhost(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return syntax.choice("on", "off", "auto")(value)


def _forwards(value: object) -> tuple[Forward, ...]:
    forwards = tuple(map(Forward.read, value if isinstance(value, list) else [value]))
    for index, one in enumerate(forwards):
        for other in forwards[:index]:
            if one.clashes(other):
                raise ValueError(f"{other} and {one} want the same port of this host")
    return forwards


def _ip_address(text: str) -> str:
    """The address in its usual form, without the brackets of IPv6."""
    import socket

    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    family = socket.AF_INET6 if bare != text else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, bare))
    except (OSError, ValueError):
        raise ValueError(f"has {text}, which is no IP address (IPv6 in brackets)") from None
