"""The front end of one vhost-user device: it outlives connections, back ends and machines.

    lost ── connect, handshake ── up ── start(activation) ── ... ── stop ── up
      ^                            |                          |
      +--- timer, while lost ------+--------------------------+

A back end that ends, hangs or breaks the protocol is lost: one line, and from then on attempts to connect
on a timer, which runs at no other time.  The guest's requests wait meanwhile in its rings.  The next back
end gets everything again and goes on exactly where the one before stopped (``resume``); where nobody can
tell, the guest's device stops.  Nothing here ever waits for a back end with the machine lock held.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from nemu.errors import ConfigError, GuestError, HostError, NemuError
from nemu.interfaces import EventLoop, Timer
from nemu.memory import Region
from nemu.vhost.user import message, resume, script
from nemu.vhost.user.channel import Channel, Script
from nemu.vhost.user.message import BackendError
from nemu.vhost.user.requests import Requests
from nemu.vhost.user.script import Activation, Info, Wish

FIRST_RETRY, LAST_RETRY = 0.1, 2.0  # seconds between attempts to connect, doubled each time
LOSSES, LOSSES_SECONDS = 5, 60.0  # as many in that time, and it is given up


class Endpoint(Protocol):
    """Where a back end is found.  ``name`` is for messages: the option as the user wrote it."""

    name: str

    def connect(self) -> socket.socket:
        """A new connection, at once.  Raises OSError when nobody is there now, HostError for never."""
        ...

    def alarm(self) -> int:
        """A descriptor that is readable when the program behind it has ended, -1 for none."""
        ...

    def last_words(self) -> str:
        """What the program said last, "" for nothing."""
        ...

    def lost(self) -> None:
        """The connection was given up: nothing of that back end may live on, where that can be had."""
        ...

    def close(self) -> None: ...


class User(Protocol):
    """The device of the current machine."""

    def config_read(self, config: bytes) -> None:
        """The back end's configuration space as it is now."""
        ...


class Frontend:
    """Owns ``endpoint``.  ``begin`` and ``open`` first; then ``info`` says what the back end is.

    ``config_size`` as in script.Wish.  ``in_order``: back ends of this kind complete requests in their
    order, and to do one again does no harm (network cards).  ``force_inflight``: set INFLIGHT_SHMFD though
    the back end does not offer it.  ``lasting``: the back end ends with its connection (file systems do), so
    that a reset of the machine must not end it.  ``volatile``: data of completed requests end with it, and so
    does the device, since its driver could not know.  ``warn`` gets a line for the user.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        loop: EventLoop,
        warn: Callable[[str], None],
        *,
        config_size: int = -1,
        in_order: bool = False,
        force_inflight: bool = False,
        lasting: bool = False,
        volatile: bool = False,
    ) -> None:
        self.info: Info
        self.user: User | None = None
        self._endpoint = endpoint
        self._loop = loop
        self._warn = warn
        self._config_size = config_size
        self._in_order = in_order
        self._forced = message.P_INFLIGHT_SHMFD if force_inflight else 0
        self._lasting = lasting
        self._volatile = volatile
        self._channel: Channel | None = None
        self._requests: Requests | None = None
        self._known: list[Region] = []  # the back end's memory table
        self._up = False  # the handshake is done
        self._opened = False
        self._active: Activation | None = None
        self._stopping: Activation | None = None  # its rings are being stopped, for ``_stopped``
        self._stopped: Callable[[], None] | None = None
        self._unsent: dict[tuple[int, int], int] = {}  # writes to the configuration space
        self._reading = False  # the configuration space is about to be read
        self._timer: Timer | None = None
        self._delay = FIRST_RETRY
        self._missed = False  # the user knows that the back end is lost
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._failed: NemuError | None = None  # given up

    # --- before the guest runs, and between machines ---------------------------------------------

    def begin(self) -> None:
        """Connect, and start the program if it is ours, without waiting.  For ``open`` to go on."""
        try:
            self._channel_on(self._endpoint.connect())
        except OSError as error:
            self._failed = ConfigError(self._endpoint.name, "", f"cannot connect: {error.strerror}")
        except HostError as error:
            self._failed = error

    def open(self) -> None:
        """Wait for the handshake, the first time; later see that it comes by itself.

        Raises ConfigError and HostError, the first time only.
        """
        if self._opened:
            if not (self._channel or self._timer or self._failed):
                self._connect()
            return
        if not (self._channel or self._failed):
            self.begin()
        self._wait_for_hands()
        if self._failed and self._forced:
            # It may be the feature that it does not offer; without it a lost request stops the device.
            self._forced, self._failed = 0, None
            self.begin()
            self._wait_for_hands()
        if self._failed:
            raise self._failed
        self._opened = True

    def _wait_for_hands(self) -> None:
        if self._channel:
            self._channel.wait(watched=self._endpoint.alarm())
        if not self._up and not self._failed:
            self._lost(BackendError("has ended"))

    def need_queues(self, count: int) -> None:
        """Raises ConfigError unless the back end has them; of a type with a fixed number it need not say."""
        if self.info.protocol & message.P_MQ and self.info.queues < count:
            problem = f"the back end has {self.info.queues} queues, {count} are needed"
            raise ConfigError(self._endpoint.name, "", problem)

    def drain(self) -> None:
        """Wait until the back end has let go of the machine that ended.  Not while the loop runs."""
        if self._channel:
            self._channel.wait()
        if self._channel and not self._lasting:
            self._up = False
            self._channel.hang_up(self._forget_session)
        if self._channel:
            self._channel.wait()

    def close(self) -> None:
        self._forget_session()
        if self._timer:
            self._timer.cancel()
        self._release(self._active)
        self._endpoint.close()

    # --- what the device asks for ------------------------------------------------------------------

    def start(self, active: Activation) -> None:
        """Let the back end serve the queues, now or when there is one."""
        self._active = active
        active.errors = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.add_reader(active.errors, partial(self._ring_error, active))
        if self._failed:
            active.transport.stop(HostError(str(self._failed)))
        elif self._up:
            self._start(active)

    def stop(self, done: Callable[[], None]) -> None:
        """Take the queues back; ``done`` once the back end has let go of them, or is lost."""
        active, self._active = self._active, None
        channel = self._channel
        if active is None or not active.started or not self._up or channel is None:
            self._release(active)
            done()
            return
        self._stopping, self._stopped = active, done
        if channel.busy:
            # What is still to be sent names descriptors of a machine that may close them now.
            self._hang_up()
        else:
            channel.run(script.stop(self.info, active), self._rings_stopped)

    def memory_changed(self) -> None:
        """The machine has more memory."""
        active = self._active
        if active and active.started and self._up and self._channel:
            self._channel.run(self._memory(active), lambda _: None)

    def _memory(self, active: Activation) -> Script[None]:
        if active is self._active:
            yield from script.memory(self.info, active.ram.regions, self._known)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """To the back end, now or when it gets the queues; of several writes to one field the last."""
        active = self._active
        if active is None:
            return  # nothing that a driver sets before DRIVER_OK
        active.writes[offset, width] = value
        if active.started and self._up and self._channel:
            waiting = bool(self._unsent)
            self._unsent[offset, width] = value
            if not waiting:
                self._channel.run(self._send_writes(), lambda _: None)

    def _send_writes(self) -> Script[None]:
        writes, self._unsent = self._unsent, {}
        if self.info.protocol & message.P_CONFIG:
            yield from script.write_config(writes)

    # --- the connection ------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._timer = None
        try:
            self._channel_on(self._endpoint.connect())
        except OSError:
            self._retry()
        except HostError as error:
            self._give_up(error)

    def _channel_on(self, connection: socket.socket) -> None:
        self._requests = requests = Requests(self._loop, self._read_config, self._lost)
        self._channel = Channel(connection, self._loop, self._lost)
        wish = Wish(self._config_size, requests.theirs, self._forced)
        self._channel.run(script.handshake(wish), self._hands_shaken)

    def _hands_shaken(self, info: Info) -> None:
        assert self._channel
        assert self._requests
        self._requests.sent()
        self._channel.acknowledged = bool(info.protocol & message.P_REPLY_ACK)
        first = not self._opened
        if first:
            self.info = info
        elif missing := self._missing(info):
            self._give_up(HostError(f"the back end that has returned has no {missing}"))
            return
        self.info, self._up = info, True
        if self._missed:
            self._missed = False
            self._warn(f"{self._endpoint.name}: the back end is back")
        if not first:
            self._tell_config(info.config)
        if self._active:
            self._start(self._active)

    def _missing(self, info: Info) -> str:
        """What the driver may rely on and the new back end lacks."""
        if lost := self.info.features & ~info.features:
            return f"features {lost:#x}"
        if info.queues < self.info.queues:
            return f"{self.info.queues} queues any more"
        if len(info.config) != len(self.info.config):
            return f"configuration space of {len(self.info.config)} bytes"
        return ""

    def _lost(self, error: HostError) -> None:
        """The session is over, for a reason that nobody wanted."""
        words = self._endpoint.last_words()
        self._forget_session()
        self._endpoint.lost()
        if not self._opened:
            self._failed = ConfigError(self._endpoint.name, "", words or f"the back end {error}")
            return
        if not self._missed:
            reason = f"the back end {error}" + (f" ({words})" if words else "")
            now = time.monotonic()
            self._losses.append(now)
            if len(self._losses) == LOSSES and now - self._losses[0] < LOSSES_SECONDS:
                self._give_up(HostError(f"{reason}, {LOSSES} times in {LOSSES_SECONDS:.0f} seconds"))
                return
            self._missed = True
            self._warn(f"{self._endpoint.name}: {reason}; the device waits for it to return")
        self._retry()

    def _retry(self) -> None:
        self._timer = self._loop.call_later(self._delay, self._connect)
        self._delay = min(2 * self._delay, LAST_RETRY)

    def _forget_session(self) -> None:
        self._note_idle_rings()
        self._up = self._reading = False
        self._known.clear()
        self._unsent.clear()
        if self._requests:
            self._requests.close()
        if self._channel:
            self._channel.close()
        self._channel = self._requests = None
        self._let_go()

    def _give_up(self, error: HostError) -> None:
        """For good: whatever machine has a device here."""
        self._failed = error
        self._forget_session()
        if self._active:
            self._stop_device(self._active, error)

    def _hang_up(self) -> None:
        """End the session in good order, and begin the next one."""
        assert self._channel
        self._up = False
        self._channel.hang_up(self._hung_up)

    def _hung_up(self) -> None:
        self._forget_session()
        self._connect()

    # --- the rings -------------------------------------------------------------------------------------

    def _start(self, active: Activation) -> None:
        assert self._channel
        resumed = active.started
        if resumed and not self._find_bases(active):
            return
        active.started = active.running = True
        self._channel.run(
            script.start(self.info, active, self._known), partial(self._rings_started, active, resumed)
        )

    def _find_bases(self, active: Activation) -> bool:
        if self._volatile:
            self._stop_device(active, HostError("the back end was lost, and with it what it had not written"))
            return False
        try:
            for index, queue in active.rings:
                known = active.inflight is not None or index in active.idle
                base = resume.base(active.ram, queue, known=known, in_order=self._in_order)
                if base is None:
                    error = "the back end was lost with requests of which nobody knows whether they were done"
                    self._stop_device(active, HostError(error))
                    return False
                active.bases[index] = base
        except GuestError as error:
            self._stop_device(active, error)
            return False
        return True

    def _note_idle_rings(self) -> None:
        """What the driver makes available from now on no back end has seen."""
        active = self._active
        if active and active.running:
            active.running = False
            try:
                active.idle = {index for index, queue in active.rings if resume.owed(active.ram, queue) == 0}
            except GuestError:
                active.idle = set()

    def _rings_started(self, active: Activation, resumed: bool, _result: None) -> None:
        self._delay = FIRST_RETRY
        if resumed and active is self._active:
            # Signals of the old back end's last moments are lost; one too many does no harm.
            for _, queue in active.rings:
                for eventfd in (queue.kick, queue.call):
                    if eventfd >= 0:
                        os.eventfd_write(eventfd, 1)

    def _rings_stopped(self, bases: dict[int, int]) -> None:
        assert self._stopping
        if not self._lasting and self._owed(self._stopping, bases):
            # It takes no more requests and still works on some: those end before its connection does.
            self._hang_up()
        else:
            self._let_go()

    def _let_go(self) -> None:
        """No back end touches the rings of the activation that is being stopped any more."""
        self._release(self._stopping)
        done, self._stopping, self._stopped = self._stopped, None, None
        if done:
            done()

    def _owed(self, active: Activation, bases: dict[int, int]) -> bool:
        try:
            return any(
                0 < (bases[index] - resume.indices(active.ram, queue).used) & 0xFFFF <= queue.size
                for index, queue in active.rings
            )
        except GuestError:
            return False  # the machine has gone meanwhile: ``drain`` hangs up anyway

    def _ring_error(self, active: Activation) -> None:
        self._loop.remove_reader(active.errors)
        self._stop_device(active, GuestError("the back end found an error in a queue"))

    def _stop_device(self, active: Activation, error: GuestError | HostError) -> None:
        if active is self._active:
            active.transport.stop(error)

    def _release(self, active: Activation | None) -> None:
        """Give back what an activation held; not before its rings have stopped."""
        if active is None:
            return
        if active.errors >= 0:
            self._loop.remove_reader(active.errors)
            os.close(active.errors)
            active.errors = -1
        if active.inflight:
            os.close(active.inflight.fd)
            active.inflight = None

    # --- the configuration space -----------------------------------------------------------------------

    def _read_config(self) -> None:
        if self._up and self._channel and not self._reading and self.info.protocol & message.P_CONFIG:
            self._reading = True
            self._channel.run(script.read_config(len(self.info.config)), self._config_read)

    def _config_read(self, config: bytes) -> None:
        self._reading = False
        self.info = self.info._replace(config=config)
        self._tell_config(config)

    def _tell_config(self, config: bytes) -> None:
        if self.user:
            self.user.config_read(config)
