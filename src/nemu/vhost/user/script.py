"""The steps of the protocol, each written once as a script (see ``channel``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nemu.memory import GuestRam, Region
from nemu.vhost.user import message
from nemu.vhost.user.channel import Script
from nemu.vhost.user.message import BackendError, Inflight, Request
from nemu.virtio.common_config import F_VERSION_1
from nemu.virtio.device import Transport
from nemu.virtio.queue import Queue

# What we can do.  Not among it: shared memory of the back end's (host notifiers, maps), and descriptors
# from it (BACKEND_SEND_FD), which a hostile one could use to make us hold or map anything.
PROTOCOL = (
    message.P_MQ
    | message.P_REPLY_ACK
    | message.P_BACKEND_REQ
    | message.P_CONFIG
    | message.P_INFLIGHT_SHMFD
    | message.P_RESET_DEVICE
    | message.P_CONFIGURE_MEM_SLOTS
)
# Where a device type does not say how large its configuration is, the largest that the back end gives.
_CONFIG_SIZES = (256, 128, 64, 32, 16, 8, 4)


class Wish(NamedTuple):
    """What a handshake asks for.

    ``config_size`` is in bytes, 0 for no configuration space of the back end's, -1 for as much as it gives.
    ``forced`` are protocol features to set even when the back end does not offer them; ``requests`` is our
    descriptor for its own requests.
    """

    config_size: int
    requests: int
    forced: int = 0


class Info(NamedTuple):
    """What a back end is: virtio features, protocol features in use, most queues, most memory regions,
    configuration space."""

    features: int
    protocol: int
    queues: int
    slots: int
    config: bytes


@dataclass(slots=True)
class Activation:
    """One life of the device from DRIVER_OK to its reset.  ``queues`` are those that the back end serves.

    ``started``: a back end may have touched the rings; ``running``: one may do so now; ``idle``: where the
    last one owed nothing when it was lost.  ``inflight`` goes from one back end to the next.
    """

    features: int
    queues: tuple[Queue | None, ...]
    transport: Transport
    ram: GuestRam
    started: bool = False
    running: bool = False
    idle: set[int] = field(default_factory=set)
    inflight: Inflight | None = None
    errors: int = -1  # eventfd by which the back end tells of an error in a ring
    bases: dict[int, int] = field(default_factory=dict)
    # What was written to the configuration space, for each (offset, width): a new back end gets it again.
    writes: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def rings(self) -> list[tuple[int, Queue]]:
        return [(index, queue) for index, queue in enumerate(self.queues) if queue]


def handshake(wish: Wish) -> Script[Info]:
    """Find out and agree on everything that does not depend on the driver."""
    (reply,) = yield [message.ask(message.GET_FEATURES)]
    features = message.number(reply)
    if not features & F_VERSION_1:
        raise BackendError(f"offers no device of virtio 1.0 or later (features {features:#x})")
    protocol, queues, slots, config = 0, 0, 0, b""
    if features & message.F_PROTOCOL_FEATURES:
        (reply,) = yield [message.ask(message.GET_PROTOCOL_FEATURES)]
        protocol = message.number(reply) & PROTOCOL | wish.forced
        yield [message.u64(message.SET_PROTOCOL_FEATURES, protocol)]
    yield [Request(message.SET_OWNER)]
    if protocol & message.P_MQ:
        (reply,) = yield [message.ask(message.GET_QUEUE_NUM)]
        queues = message.number(reply)
    if protocol & message.P_CONFIGURE_MEM_SLOTS:
        (reply,) = yield [message.ask(message.GET_MAX_MEM_SLOTS)]
        slots = message.number(reply)
    if protocol & message.P_BACKEND_REQ:
        yield [Request(message.SET_BACKEND_REQ_FD, fds=(wish.requests,))]
    if protocol & message.P_CONFIG and wish.config_size:
        config = yield from read_config(wish.config_size)
    if wish.forced & message.P_INFLIGHT_SHMFD:
        message.close_all([(yield from get_inflight(1, 1)).fd])
    return Info(features, protocol, queues, slots, config)


def read_config(size: int) -> Script[bytes]:
    """``size`` bytes of the configuration space, or for -1 as much as the back end gives."""
    for length in _CONFIG_SIZES if size < 0 else (size,):
        (reply,) = yield [message.get_config(length)]
        config = message.config(reply, length)
        if config is not None:
            return config
    raise BackendError("gives no configuration space")


def get_inflight(queues: int, queue_size: int) -> Script[Inflight]:
    (reply,) = yield [message.get_inflight(queues, queue_size)]
    return message.inflight(reply, queues, queue_size)


def write_config(writes: Mapping[tuple[int, int], int]) -> Script[None]:
    """Values by (offset, width)."""
    yield [
        message.set_config(offset, value.to_bytes(width, "little"))
        for (offset, width), value in writes.items()
    ]


def start(info: Info, active: Activation, known: list[Region]) -> Script[None]:
    """Give the back end everything and start the rings at ``active.bases``.

    ``known`` is its memory table, kept up to date.
    """
    features = active.features & info.features | info.features & message.F_PROTOCOL_FEATURES
    yield [message.u64(message.SET_FEATURES, features)]
    if info.protocol & message.P_INFLIGHT_SHMFD:
        if active.inflight is None:
            largest = max((queue.size for _, queue in active.rings), default=1)
            active.inflight = yield from get_inflight(len(active.queues), largest)
        yield [message.set_inflight(active.inflight)]
    yield from memory(info, active.ram.regions, known)
    if info.protocol & message.P_CONFIG:
        yield from write_config(active.writes)
    for index, queue in active.rings:
        yield _ring(index, queue, active)
    if info.features & message.F_PROTOCOL_FEATURES:
        yield [message.state(message.SET_VRING_ENABLE, index, 1) for index, _ in active.rings]


def _ring(index: int, queue: Queue, active: Activation) -> list[Request]:
    places = (message.user_address(gpa) for gpa in (queue.desc, queue.avail, queue.used))
    return [
        message.state(message.SET_VRING_NUM, index, queue.size),
        message.state(message.SET_VRING_BASE, index, active.bases.get(index, 0)),
        message.ring_addresses(index, *places),
        message.ring_fd(message.SET_VRING_ERR, index, active.errors),
        message.ring_fd(message.SET_VRING_CALL, index, queue.call),
        message.ring_fd(message.SET_VRING_KICK, index, queue.kick),
    ]


def memory(info: Info, regions: Sequence[Region], known: list[Region]) -> Script[None]:
    """Make ``regions`` the back end's memory; what is only more than it has does not disturb the rings."""
    # A back end maps its memory for writing, which a file that is open for reading only does not allow.
    regions = [region for region in regions if not region.readonly]
    grows = list(regions[: len(known)]) == known
    if grows and info.slots and (known or len(regions) > message.MAX_REGIONS):
        if len(regions) > info.slots:
            raise BackendError(f"takes {info.slots} regions of memory, the machine has {len(regions)}")
        yield [message.add_region(region) for region in regions[len(known) :]]
    elif len(regions) <= message.MAX_REGIONS:
        yield [message.memory_table(regions)]
    else:
        raise BackendError(f"takes {message.MAX_REGIONS} regions of memory, the machine has {len(regions)}")
    known[:] = regions


def stop(info: Info, active: Activation) -> Script[dict[int, int]]:
    """Stop the rings; where each of them stands in its available ring."""
    replies = yield [message.state(message.GET_VRING_BASE, index, 0) for index, _ in active.rings]
    bases = {
        index: message.ring_base(reply, index)
        for (index, _), reply in zip(active.rings, replies, strict=True)
    }
    if info.protocol & message.P_RESET_DEVICE:
        yield [Request(message.RESET_DEVICE)]
    return bases
