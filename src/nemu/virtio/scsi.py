"""virtio-scsi: a controller for the units of a SCSI bus (virtio 1.2, section 5.6).

Requests are taken in the loop thread; I/O is done by the worker threads of the unit's disk, straight
between the host's disk and guest RAM.

Threat note: addresses, sizes and types are checked here, commands by the unit.  No more requests are in
flight than the queues have entries.  A task management function that aborts answers once what
it aborted touches guest RAM no more; what has not begun is not begun.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from nemu import iovec
from nemu.errors import GuestError
from nemu.interfaces import EventLoop
from nemu.scsi.bus import LUNS, TARGETS, Address, Bus, NoTargetError, lun_field
from nemu.scsi.disk import ScsiDisk
from nemu.scsi.sense import BUSY, Io, OverrunError, Reply
from nemu.virtio.device import MachineLock, Transport, VirtioDevice, again, drain, guarded
from nemu.virtio.in_flight import InFlight
from nemu.virtio.queue import Chain, Queue
from nemu.virtio.scsi_task import Task, TaskSet

CONTROL, EVENT, REQUEST = 0, 1, 2  # the first of the request queues
QUEUE_SIZE = 256
MAX_QUEUES = 4
F_HOTPLUG = 1 << 1  # 5.6.3

# 5.6.4: num_queues, seg_max, max_sectors, cmd_per_lun, event_info_size, sense_size, cdb_size,
# max_channel, max_target, max_lun
_CONFIG = struct.Struct("<IIIIIIIHHI")
_SENSE_SIZE, _CDB_SIZE = 20, 24  # offsets of the fields that a driver may write
SENSE_SIZE, CDB_SIZE = 96, 32
MAX_FIELD = 252  # bytes
MAX_SECTORS = 0xFFFF
PROBED_TARGETS = 16  # a driver looks for units at no more of them, unless there are

# 5.6.6.1: request and response before the CDB, the sense data
_REQUEST = struct.Struct("<8sQBBB")  # lun, id, task_attr, prio, crn
_RESPONSE = struct.Struct("<IIHBB")  # sense_len, residual, status_qualifier, status, response
S_OK, S_OVERRUN, S_ABORTED, S_BAD_TARGET, S_RESET, S_FAILURE = 0, 1, 2, 3, 4, 9

# 5.6.6.2
_TASK = struct.Struct("<II8sQ")  # type, subtype, lun, id
_NOTIFICATION = struct.Struct("<I8sI")  # type, lun, event_requested
T_TASK, T_QUERY, T_SUBSCRIBE = 0, 1, 2

# 5.6.6.3
_EVENT = struct.Struct("<I8sI")  # event, lun, reason
T_NO_EVENT, T_TRANSPORT_RESET, T_EVENTS_MISSED = 0, 1, 1 << 31
RESET_RESCAN, RESET_REMOVED = 1, 2


def parse_lun(lun: bytes) -> Address | None:
    """(target, LUN) of the 8 bytes of an address (5.6.6.1); None for one that no unit can have."""
    first, target, number = struct.unpack_from(">BBH", lun)
    method, number = number >> 14, number & (LUNS - 1)
    if first != 1 or any(lun[4:]) or method > 1 or (method == 0 and number > 255):
        return None
    return target, number


@dataclass(slots=True)
class _Active:
    queues: tuple[Queue | None, ...]
    transport: Transport
    in_flight: InFlight
    hotplug: bool  # the driver wants to hear of it
    tasks: TaskSet = field(default_factory=TaskSet)
    missed: bool = False  # an event for which there was no buffer


@dataclass(slots=True, eq=False)
class _Request(Task):
    """A command on its way: where its response goes, and the sizes of both data buffers together."""

    queue: Queue
    head: int
    response: iovec.Iovec
    size: int
    incoming: int  # bytes of data for the guest at most
    reply: Reply | None = None

    def complete(self, response: int) -> None:
        """Give it back with ``reply``, or without one."""
        reply = self.reply or Reply(transferred=0)
        room = iovec.size(self.response)
        sense = reply.sense[: room - _RESPONSE.size]
        head = _RESPONSE.pack(len(sense), self.size - reply.transferred, 0, reply.status, response)
        iovec.scatter(self.response, (head + sense).ljust(room, b"\0"))
        self.queue.push(self.head, room + min(reply.transferred, self.incoming))


class VirtioScsi(VirtioDevice):
    """A controller with ``queues`` request queues for the units of ``bus``."""

    device_id = 8
    features = F_HOTPLUG

    def __init__(self, name: str, bus: Bus, lock: MachineLock, loop: EventLoop, *, queues: int = 1) -> None:
        queues = min(queues, MAX_QUEUES)
        super().__init__(name, _config(bus, queues))
        self.queue_sizes = (64, 64, *(QUEUE_SIZE,) * queues)
        self._bus = bus
        self._lock = lock
        self._loop = loop
        self._active: _Active | None = None

    def activate(self, features: int, queues: tuple[Queue | None, ...], transport: Transport) -> None:
        self._active = _Active(queues, transport, InFlight(self._lock), hotplug=bool(features & F_HOTPLUG))

    def notify(self, index: int) -> None:
        active = self._active
        queue = active.queues[index] if active and index < len(active.queues) else None
        if active is None or queue is None:
            return
        if index == EVENT:
            if active.missed:
                self._send_event(active, T_NO_EVENT, bytes(8), 0)
            return
        start = self._control if index == CONTROL else self._start
        if drain(queue, lambda chain: start(active, queue, chain)):
            again(self._loop, active.transport, self.notify, index)

    def deactivate(self, done: Callable[[], None]) -> None:
        active, self._active = self._active, None
        struct.pack_into("<II", self.config, _SENSE_SIZE, SENSE_SIZE, CDB_SIZE)  # 5.6.4: as after a reset
        if active:
            active.in_flight.end(done)
        else:
            done()

    def write_config(self, offset: int, width: int, value: int) -> None:
        if offset in (_SENSE_SIZE, _CDB_SIZE) and width == 4 and 0 < value <= MAX_FIELD:
            struct.pack_into("<I", self.config, offset, value)

    # --- units that come and go ------------------------------------------------------------------

    def add(self, address: Address, unit: ScsiDisk) -> None:
        """Plug ``unit`` in at (target, LUN), which is free; the driver is told to look there."""
        self._bus.add(address, unit)
        self._tell(address, RESET_RESCAN)

    def remove(self, address: Address) -> ScsiDisk:
        """Unplug a unit, KeyError when there is none.  Its I/O in flight still ends (``Disk.drain``)."""
        unit = self._bus.remove(address)
        self._tell(address, RESET_REMOVED)
        return unit

    def _tell(self, address: Address, reason: int) -> None:
        active = self._active
        if active and active.hotplug:
            lun = bytes((1, address[0])) + lun_field(address[1]) + bytes(4)
            guarded(active.transport, lambda: self._send_event(active, T_TRANSPORT_RESET, lun, reason))

    @staticmethod
    def _send_event(active: _Active, event: int, lun: bytes, reason: int) -> None:
        """Into a buffer of the driver's; without any the event is lost, which the next one says (5.6.6.3)."""
        queue = active.queues[EVENT]
        chain = queue.pop() if queue else None
        if queue is None or chain is None:
            active.missed = True
            return
        if iovec.size(chain.writable) < _EVENT.size:
            raise GuestError("a buffer for an event without room")
        missed = T_EVENTS_MISSED if active.missed else 0
        active.missed = False
        queue.push(chain.head, iovec.scatter(chain.writable, _EVENT.pack(event | missed, lun, reason)))
        queue.flush()

    # --- commands ------------------------------------------------------------------------------------

    def _start(self, active: _Active, queue: Queue, chain: Chain) -> bool:
        """Hand the command in ``chain`` to its unit.  Raises GuestError."""
        sense_size, cdb_size = struct.unpack_from("<II", self.config, _SENSE_SIZE)
        header = iovec.gather(chain.readable, _REQUEST.size + cdb_size)
        room = _RESPONSE.size + sense_size
        response = iovec.take(chain.writable, room)
        if len(header) < _REQUEST.size + cdb_size or iovec.size(response) < room:
            raise GuestError("a SCSI request without a command or without room for its response")
        lun, tag, *_ = _REQUEST.unpack_from(header)
        outgoing = iovec.skip(chain.readable, len(header))
        incoming = iovec.skip(chain.writable, room)
        address = parse_lun(lun)
        size = iovec.size(outgoing) + iovec.size(incoming)
        request = _Request(address, tag, queue, chain.head, response, size, iovec.size(incoming))
        try:
            self._execute(active, request, header[_REQUEST.size :], outgoing, incoming)
        except NoTargetError:
            request.complete(S_BAD_TARGET)
        except OverrunError:
            request.complete(S_OVERRUN)
        return True

    def _execute(
        self, active: _Active, request: _Request, cdb: bytes, outgoing: iovec.Iovec, incoming: iovec.Iovec
    ) -> None:
        if request.address is None:
            raise NoTargetError
        if outgoing and incoming:
            request.complete(S_FAILURE)  # 5.6.6.1.1: not without F_INOUT
            return
        unit, result = self._bus.start(request.address, cdb, outgoing, incoming)
        if isinstance(result, Reply):
            request.reply = result
            request.complete(S_OK)
            return
        assert unit
        active.tasks.add(request)
        active.in_flight.submit(
            unit.disk, lambda: _work(request, result), lambda error: self._finish(active, request, error)
        )

    @staticmethod
    def _finish(active: _Active, request: _Request, error: OSError | None) -> None:
        if error:  # no memory for it
            request.reply = Reply(BUSY)
        if request.aborted is not None:
            request.reply = None
        request.complete(S_OK if request.aborted is None else request.aborted)
        request.queue.flush()
        active.tasks.remove(request)

    # --- task management -----------------------------------------------------------------------------

    def _control(self, active: _Active, queue: Queue, chain: Chain) -> bool:
        """One request of the control queue.  Raises GuestError."""
        header = iovec.gather(chain.readable, _TASK.size)
        kind = int.from_bytes(header[:4], "little")

        def respond(data: bytes) -> None:
            queue.push(chain.head, iovec.scatter(chain.writable, data))

        if kind == T_TASK and len(header) == _TASK.size and iovec.size(chain.writable) >= 1:
            _, function, lun, tag = _TASK.unpack(header)

            def ended(response: int) -> None:
                respond(bytes((response,)))
                queue.flush()

            active.tasks.manage(self._bus, function, parse_lun(lun), tag, ended)
        elif (
            kind in (T_QUERY, T_SUBSCRIBE)
            and len(header) >= _NOTIFICATION.size
            and iovec.size(chain.writable) >= 5
        ):
            respond(struct.pack("<IB", 0, S_OK))  # none of the events that may be asked for comes
        else:
            raise GuestError(f"a SCSI control request of type {kind} with {len(header)} bytes")
        return True


def _work(request: _Request, io: Io) -> None:
    """In a worker thread."""
    if request.aborted is None:
        request.reply = io()


def _config(bus: Bus, queues: int) -> bytes:
    last = max((PROBED_TARGETS - 1, *bus.targets()))
    assert last < TARGETS
    return _CONFIG.pack(
        *(queues, QUEUE_SIZE - 2, MAX_SECTORS, QUEUE_SIZE // 2),  # two descriptors go with the data
        *(_EVENT.size, SENSE_SIZE, CDB_SIZE),
        *(0, last, LUNS - 1),
    )
