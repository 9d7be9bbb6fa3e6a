"""The control queue of virtio-net (virtio 1.2, section 5.1.6.5).

Threat note: a command may cost the host more than it costs the guest (a queue of a tap comes and goes under
a lock of the whole network), so only one is executed in each turn of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nemu import iovec
from nemu.errors import GuestError, HostError
from nemu.virtio.device import again

if TYPE_CHECKING:
    from nemu.interfaces import EventLoop
    from nemu.virtio.device import Transport
    from nemu.virtio.queue import Chain, Queue

QUEUE_SIZE = 64

# 5.1.3 feature bits
F_CTRL_VQ = 1 << 17
F_MQ = 1 << 22

# 5.1.6.5: class and command, then data; the device's answer
VQ_PAIRS_SET = (4, 0)  # 5.1.6.5.5: u16, the number of queue pairs to use
OK, ERR = 0, 1

_COMMAND_SIZE = 2
_MAX_SIZE = 64  # more than any command here

Commands = Mapping[tuple[int, int], Callable[[bytes], bool]]


class ControlQueue:
    """Executes the commands in ``queue``: each of ``commands`` takes the data and gives whether it is done.

    A HostError of theirs stops the device.
    """

    def __init__(self, queue: Queue, commands: Commands, loop: EventLoop, transport: Transport) -> None:
        self._queue: Queue | None = queue
        self._commands = commands
        self._loop = loop
        self._transport = transport

    def serve(self) -> None:
        """Execute the next command, and the others in later turns of the loop.  Raises GuestError."""
        queue = self._queue
        if queue is None:
            return
        queue.disable_notifications()
        chain = queue.pop()
        if chain is None:
            if not queue.enable_notifications():
                return
        else:
            try:
                answer = OK if self._execute(chain) else ERR
            except HostError as error:
                self._transport.stop(error)
                return
            iovec.scatter(chain.writable, bytes([answer]))
            queue.push(chain.head, 1)
            queue.flush()
        again(self._loop, self._transport, self.serve)

    def close(self) -> None:
        """The queue is the driver's again."""
        self._queue = None

    def _execute(self, chain: Chain) -> bool:
        if iovec.size(chain.readable) < _COMMAND_SIZE or not chain.writable:
            raise GuestError("a control command without its class, its number or room for the answer")
        data = iovec.gather(chain.readable, _MAX_SIZE)
        command = self._commands.get((data[0], data[1]))
        return command is not None and command(data[_COMMAND_SIZE:])
