"""The front end against a back end that lives, dies, hangs and returns."""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.driver import Driver, FakeTransport, Used
from fakes.loop import FakeLoop
from fakes.vhost_user import (
    ADD_MEM_REG,
    BACKEND_REQ,
    CONFIG,
    GET_CONFIG,
    GET_INFLIGHT,
    GET_VRING_BASE,
    INFLIGHT,
    MEM_SLOTS,
    MQ,
    PROTOCOL,
    REPLY_ACK,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_VRING_ADDR,
    SET_VRING_ENABLE,
    VERSION_1,
    Backend,
    DiedError,
)
from nemu.errors import ConfigError
from nemu.memory import GuestRam, map_image
from nemu.vhost.user.channel import PATIENCE
from nemu.vhost.user.device import VhostUserDevice
from nemu.vhost.user.endpoint import SocketEndpoint
from nemu.vhost.user.frontend import Frontend
from nemu.virtio.queue import Queue

SIZE = 16
RAM = 4 << 20
LASTING = MQ | REPLY_ACK | CONFIG | BACKEND_REQ | MEM_SLOTS  # everything but a record of requests in flight


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class Machine:
    """A device and the driver of its first queue, on a front end that outlives them."""

    def __init__(self, path: str, **how: bool | int) -> None:
        self.loop = FakeLoop()
        self.lines: list[str] = []
        endpoint = SocketEndpoint(f"--vhost-user socket={path}", path)
        self.frontend = Frontend(endpoint, self.loop, self.lines.append, **how)  # type: ignore[arg-type]
        self.transport = FakeTransport()
        self.kick, self.call = eventfd(), eventfd()
        self.ram = GuestRam([(0, RAM)])

    def build(self, queues: int = 1) -> None:
        self.frontend.open()
        self.device = VhostUserDevice(
            "vhost-user0", 42, self.frontend, self.ram, queues=queues, queue_size=SIZE
        )

    def activate(self) -> None:
        for address in range(0x10000, 0x11000, 8):
            self.ram.write(address, bytes(8))
        self.driver = Driver(self.ram, SIZE)
        self.queue = Queue(
            self.ram,
            size=SIZE,
            desc=self.driver.desc,
            avail=self.driver.avail,
            used=self.driver.used,
            event_idx=False,
            interrupt=lambda: pytest.fail("not by the device"),
            kick=self.kick,
            call=self.call,
        )
        self.device.activate(VERSION_1, (self.queue,), self.transport)

    def reboot(self) -> None:
        """As a session does it: the same front end, everything else anew."""
        self.device.deactivate(lambda: None)
        self.device.close()
        self.ram.close()
        self.frontend.drain()
        self.ram = GuestRam([(0, RAM)])
        self.build()
        self.activate()

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Turn the loop; attempts to connect are made without their delay."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.lines, self.transport)
            self.turn()

    def turn(self) -> None:
        self.loop.turn(0.01)
        for timer in [timer for timer in self.loop.timers if timer.seconds < PATIENCE]:
            self.loop.timers.remove(timer)
            timer.expire()

    def time_passes(self) -> None:
        """More than anybody waits for."""
        timers, self.loop.timers = self.loop.timers, []
        for timer in timers:
            timer.expire()

    def send(self, *texts: bytes) -> None:
        for text in texts:
            self.driver.add([text], [len(text)])
        os.eventfd_write(self.kick, 1)

    def collect(self, count: int) -> list[Used]:
        found: list[Used] = []

        def enough() -> bool:
            found.extend(self.driver.collect())
            return len(found) >= count

        self.until(enough)
        return found

    def settled(self) -> None:
        self.until(lambda: not self.busy)

    @property
    def busy(self) -> bool:
        channel = self.frontend._channel
        return channel is None or channel.busy or not self.frontend._up

    def close(self) -> None:
        self.frontend.close()
        self.ram.close()
        os.close(self.kick)
        os.close(self.call)


class Bench:
    """Makes back ends and machines, and sees that nothing of them is left open."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "s")
        self._parts: list[Backend | Machine] = []

    def backend(self, **how: object) -> Backend:
        self._parts.append(Backend(self.path, **how))  # type: ignore[arg-type]
        return self._parts[-1]  # type: ignore[return-value]

    def machine(self, **how: bool | int) -> Machine:
        self._parts.append(Machine(self.path, **how))
        return self._parts[-1]  # type: ignore[return-value]

    def started(self, **how: bool | int) -> Machine:
        machine = self.machine(**how)
        machine.build()
        machine.activate()
        machine.settled()
        return machine

    def end(self, part: Backend | Machine) -> None:
        self._parts.remove(part)
        part.close()

    def close(self) -> None:
        while self._parts:
            self._parts.pop().close()


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    gc.collect()
    before = len(descriptors())
    bench = Bench(tmp_path)
    yield bench
    bench.close()
    del bench
    gc.collect()  # a mapping holds a descriptor, and views of guest RAM hold mappings
    assert len(descriptors()) == before


def test_what_both_can_is_agreed_on(bench: Bench) -> None:
    offered = VERSION_1 | PROTOCOL | 1 << 28 | 1 << 29 | 1 << 35 | 1 << 51 | 1 << 5
    backend = bench.backend(features=offered, protocol=(1 << 20) - 1)
    machine = bench.started()
    assert machine.device.features == 1 << 51 | 1 << 5
    assert machine.device.ring_features == 1 << 28 | 1 << 29
    assert machine.device.config == backend.config[:32]  # the largest power of two that it gives
    # Neither descriptors from the back end nor its memory, its logs, its own pages.
    assert backend.acked_protocol == LASTING | INFLIGHT | 1 << 13
    assert backend.acked == VERSION_1 | PROTOCOL


def test_requests_and_interrupts_go_past_us(bench: Bench) -> None:
    bench.backend()
    machine = bench.started()
    machine.send(b"abc", b"defg")
    assert [used.data for used in machine.collect(2)] == [b"cba", b"gfed"]
    assert os.eventfd_read(machine.call) >= 1
    assert not machine.device.serves(0)
    assert machine.loop.readers.keys().isdisjoint({machine.kick, machine.call})


def test_a_back_end_without_protocol_features_starts_its_rings_with_the_kick(bench: Bench) -> None:
    backend = bench.backend(features=VERSION_1)
    machine = bench.started()
    assert SET_VRING_ENABLE not in backend.log
    assert machine.device.config == b""
    assert backend.acked == VERSION_1


def test_the_back_end_sees_no_address_of_ours(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    assert [region[:3] for region in backend.regions] == [(0, RAM, 0)]
    assert backend.rings[0].desc == machine.driver.desc


def test_a_changed_configuration_reaches_the_driver_once(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started(config_size=60)
    backend.config[:4] = b"new!"
    read = backend.log.count(GET_CONFIG)
    for _ in range(100):
        backend.announce()
    machine.until(lambda: machine.device.config[:4] == b"new!")
    machine.settled()
    assert machine.transport.config_changes == 1
    assert backend.log.count(GET_CONFIG) - read < 100
    replies = struct.unpack("=IIIQ", backend.requests.recv(20)) if backend.requests else ()
    assert replies == (2, 5, 8, 0)


def test_every_other_request_of_the_back_end_is_refused(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    for number in (1, 3, 4, 6, 9, 10, 77):
        backend.announce(number)
        machine.loop.until(lambda: not machine.loop.turn())
        assert backend.requests
        assert struct.unpack("=IIIQ", backend.requests.recv(20)) == (number, 5, 8, 1)
    assert machine.lines == []


def test_a_flood_of_requests_whose_replies_nobody_reads_ends_the_session(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()

    def flood() -> bool:
        try:
            backend.announce(77)
        except OSError:
            return True
        machine.loop.turn()
        return bool(machine.lines)

    while not flood():
        pass
    assert "takes no replies" in machine.lines[0]


def test_what_the_driver_writes_to_the_configuration_is_passed_on_and_outlives_the_back_end(
    bench: Bench,
) -> None:
    backend = bench.backend()
    machine = bench.started()
    machine.device.write_config(8, 4, 0x11223344)
    machine.device.write_config(8, 4, 0x55667788)
    machine.settled()
    assert backend.config_writes[-1] == (8, bytes.fromhex("88776655"))
    assert len(backend.config_writes) <= 2
    bench.end(backend)
    backend = bench.backend()
    machine.until(lambda: not machine.busy and bool(backend.config_writes))
    assert backend.config_writes == [(8, bytes.fromhex("88776655"))]


def test_a_reset_waits_until_the_rings_have_stopped(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    done: list[bool] = []
    machine.device.deactivate(lambda: done.append(True))
    assert done == []
    machine.until(lambda: bool(done))
    assert backend.log[-1] == GET_VRING_BASE
    machine.activate()
    machine.settled()
    machine.send(b"again")
    assert machine.collect(1)[0].data == b"niaga"
    assert backend.connections == 1


def test_a_reset_with_requests_in_flight_waits_for_the_end_of_the_connection(bench: Bench) -> None:
    backend = bench.backend(handle=lambda request: None)
    machine = bench.started()
    machine.send(b"kept")
    machine.until(lambda: bool(backend.rings[0].taken))
    done: list[int] = []
    machine.device.deactivate(lambda: done.append(backend.connections))
    machine.until(lambda: bool(done))
    machine.until(lambda: not machine.busy)
    assert backend.connections == 2
    assert machine.lines == []


def test_a_back_end_that_hangs_does_not_hold_up_a_reset(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    backend.deaf.add(GET_VRING_BASE)
    done: list[bool] = []
    machine.device.deactivate(lambda: done.append(True))
    machine.until(lambda: backend.log[-1] == GET_VRING_BASE)
    machine.loop.settle()
    assert done == []
    machine.time_passes()
    assert done == [True]
    assert machine.lines == [
        f"--vhost-user socket={bench.path}: the back end does not answer for 5 seconds; "
        "the device waits for it to return"
    ]


def test_a_reset_in_the_middle_of_the_set_up_sends_nothing_more(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.machine()
    machine.build()
    backend.deaf.add(SET_MEM_TABLE)
    machine.activate()
    machine.until(lambda: SET_MEM_TABLE in backend.log)
    done: list[bool] = []
    machine.device.deactivate(lambda: done.append(True))
    machine.loop.settle()
    machine.time_passes()
    assert done == [True]
    assert SET_VRING_ADDR not in backend.log


def test_a_back_end_that_ends_is_waited_for(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    machine.send(b"one")
    machine.collect(1)
    bench.end(backend)
    machine.until(lambda: bool(machine.lines))
    machine.send(b"two")
    machine.until(lambda: len(machine.loop.timers) > 0)
    bench.backend()
    assert machine.collect(1)[0].data == b"owt"
    name = f"--vhost-user socket={bench.path}: the back end"
    assert machine.lines == [
        f"{name} has closed the connection; the device waits for it to return",
        f"{name} is back",
    ]
    assert machine.transport.stopped == []


def test_no_timer_runs_while_connected(bench: Bench) -> None:
    bench.backend()
    machine = bench.started()
    assert [timer for timer in machine.loop.timers if timer._callback] == []


@pytest.mark.parametrize("seed", range(8))
def test_whatever_moment_the_back_end_dies_each_request_is_done_and_completed_once(
    bench: Bench, seed: int
) -> None:
    """With a record of requests in flight: crashes before, during and after a request, and out of order."""
    rng = random.Random(seed)
    done: dict[bytes, int] = {}
    completed: dict[bytes, int] = {}

    def handle(request: bytes) -> bytes | None:
        fate = rng.random()
        if fate < 0.15:
            raise DiedError
        if fate < 0.4:
            return None  # for later: others overtake it
        done[request] = done.get(request, 0) + 1
        return request[::-1]

    backend = bench.backend(handle=handle)
    machine = bench.started()
    machine.frontend._losses.clear()
    texts = [b"%d-%04d" % (seed, number) for number in range(60)]
    waiting = list(texts)
    while len(completed) < len(texts):
        while waiting and len(machine.driver._free) >= 2:
            machine.send(waiting.pop(0))
        for used in machine.driver.collect():
            text = used.data[::-1]
            completed[text] = completed.get(text, 0) + 1
        machine.turn()
        machine.frontend._losses.clear()  # more often than one would put up with
        backend.crash_after_publish = rng.random() < 0.1
        channel = machine.frontend._channel
        if channel and not machine.busy and rng.random() < 0.3:
            channel._socket.shutdown(socket.SHUT_RDWR)  # the kept ones are taken up by the next
    assert completed == done == dict.fromkeys(texts, 1)
    assert machine.transport.stopped == []


def test_without_a_record_a_lost_request_stops_the_device(bench: Bench) -> None:
    backend = bench.backend(handle=lambda request: None, protocol=LASTING)
    machine = bench.started()
    machine.send(b"lost")
    machine.until(lambda: bool(backend.rings[0].taken))
    bench.end(backend)
    machine.until(lambda: bool(machine.lines))
    backend = bench.backend(protocol=LASTING)
    machine.until(lambda: bool(machine.transport.stopped))
    assert "nobody knows whether they were done" in str(machine.transport.stopped[0])
    assert SET_VRING_ADDR not in backend.log


def test_what_a_back_end_held_in_its_memory_ends_the_device_with_it(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started(volatile=True)
    bench.end(backend)
    bench.backend()
    machine.until(lambda: bool(machine.transport.stopped))
    assert "with it what it had not written" in str(machine.transport.stopped[0])
    machine.device.deactivate(lambda: None)
    machine.activate()
    machine.settled()
    machine.send(b"anew")
    assert machine.collect(1)[0].data == b"wena"


def test_without_a_record_an_idle_ring_goes_on_where_it_was(bench: Bench) -> None:
    backend = bench.backend(protocol=LASTING)
    machine = bench.started()
    for number in range(3 * SIZE):
        machine.send(b"%d" % number)
        machine.collect(1)
    bench.end(backend)
    machine.until(lambda: bool(machine.lines))
    machine.send(b"next")  # which no back end has seen
    bench.backend(protocol=LASTING)
    assert machine.collect(1)[0].data == b"txen"


def test_a_network_card_goes_on_with_the_buffers_that_wait(bench: Bench) -> None:
    backend = bench.backend(handle=lambda request: None, protocol=LASTING)
    machine = bench.started(in_order=True)
    machine.send(b"room", b"more")
    machine.until(lambda: len(backend.rings[0].taken) == 2)
    bench.end(backend)
    bench.backend(protocol=LASTING)
    assert [used.data for used in machine.collect(2)] == [b"moor", b"erom"]


def test_a_network_card_that_did_not_keep_the_order_stops(bench: Bench) -> None:
    backend = bench.backend(handle=lambda request: None if request == b"slow" else request, protocol=LASTING)
    machine = bench.started(in_order=True)
    machine.send(b"slow", b"fast")
    machine.collect(1)
    bench.end(backend)
    bench.backend(protocol=LASTING)
    machine.until(lambda: bool(machine.transport.stopped))


def test_a_driver_that_claims_more_requests_than_fit_is_not_resumed(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    machine.driver.set_avail_idx(SIZE + 1)
    bench.end(backend)
    bench.backend()
    machine.until(lambda: bool(machine.transport.stopped))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"features": VERSION_1 | PROTOCOL}, "no features 0x20"),
        ({"queues": 1}, "no 4 queues any more"),
        ({"config": bytes(16)}, "no configuration space of 32 bytes"),
    ],
)
def test_a_back_end_that_returns_as_another_stops_the_device(
    bench: Bench, changed: dict[str, object], why: str
) -> None:
    features = VERSION_1 | PROTOCOL | 1 << 5
    backend = bench.backend(features=features)
    machine = bench.started()
    bench.end(backend)
    bench.backend(**{"features": features, **changed})
    machine.until(lambda: bool(machine.transport.stopped))
    assert why in str(machine.transport.stopped[0])
    machine.device.deactivate(lambda: None)
    machine.activate()
    assert len(machine.transport.stopped) == 2  # for good


def test_a_back_end_that_is_lost_again_and_again_is_given_up(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    backend.refused.add(SET_FEATURES)
    for _ in range(5):
        connections = backend.connections
        machine.until(lambda: not machine.busy or bool(machine.transport.stopped))
        if machine.frontend._channel:
            machine.frontend._channel._socket.shutdown(2)
        machine.until(
            lambda connections=connections: (
                backend.connections > connections  # type: ignore[misc]
                or bool(machine.transport.stopped)
            )
        )
        if machine.transport.stopped:
            break
    assert "5 times in 60 seconds" in str(machine.transport.stopped[0])
    assert len(machine.lines) < 10
    machine.loop.settle()
    assert [timer for timer in machine.loop.timers if timer._callback] == []


def test_a_reboot_is_a_new_session_with_the_new_memory(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    machine.send(b"first")
    machine.collect(1)
    machine.reboot()
    machine.send(b"second")
    assert machine.collect(1)[0].data == b"dnoces"
    assert backend.connections == 2
    assert machine.lines == []


def test_a_back_end_that_ends_with_its_connection_keeps_it_over_a_reboot(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started(lasting=True)
    machine.reboot()
    machine.send(b"second")
    assert machine.collect(1)[0].data == b"dnoces"
    assert backend.connections == 1


def test_memory_that_comes_later_is_added(bench: Bench) -> None:
    import mmap

    backend = bench.backend()
    machine = bench.started()
    fd = os.memfd_create("more")
    os.ftruncate(fd, 8192)
    machine.ram.add(1 << 32, mmap.mmap(fd, 4096, offset=4096), fd, 4096)
    machine.until(lambda: ADD_MEM_REG in backend.log)
    machine.settled()
    assert backend.regions[1][:2] == (1 << 32, 4096)
    assert SET_MEM_TABLE not in backend.log[backend.log.index(SET_VRING_ADDR) :]
    os.close(fd)


def test_memory_that_cannot_be_written_is_not_the_back_ends(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    backend = bench.backend()
    machine = bench.machine()
    machine.ram.add(1 << 32, map_image(fd, 4096, readonly=True), fd, readonly=True)
    machine.build()
    machine.activate()
    machine.settled()
    assert [region[0] for region in backend.regions] == [0]
    assert machine.lines == []
    os.close(fd)


@pytest.mark.parametrize(("slots", "fits"), [(MEM_SLOTS, True), (0, False)])
def test_more_memory_regions_than_fit_one_message(bench: Bench, slots: int, fits: bool) -> None:
    backend = bench.backend(protocol=LASTING & ~MEM_SLOTS | slots)
    machine = bench.machine()
    machine.ram.close()
    machine.ram = GuestRam([(0, RAM), *((number << 30, 4096) for number in range(1, 9))])
    machine.build()
    machine.activate()
    machine.until(lambda: not machine.busy or bool(machine.lines))
    assert (machine.lines == []) is fits
    assert len(backend.regions) == (9 if fits else 0)


def test_an_error_in_a_ring_stops_the_device_once(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    os.eventfd_write(backend.rings[0].err, 1)
    machine.until(lambda: bool(machine.transport.stopped))
    machine.loop.settle()
    assert [str(error) for error in machine.transport.stopped] == ["the back end found an error in a queue"]


def test_activations_without_end_hold_nothing(bench: Bench) -> None:
    backend = bench.backend()
    machine = bench.started()
    before = len(descriptors())
    watchers = len(machine.ram._watchers)
    for _ in range(20):
        done: list[bool] = []
        machine.device.deactivate(lambda done=done: done.append(True))  # type: ignore[misc]
        machine.until(lambda done=done: bool(done))  # type: ignore[misc]
        machine.activate()
        machine.settled()
    assert backend.log.count(GET_INFLIGHT) == 21
    assert len(descriptors()) <= before + 2
    assert len(machine.ram._watchers) == watchers


# --- the first connection ------------------------------------------------------------------------


def test_nobody_at_the_socket_is_a_mistake_in_one_line(bench: Bench) -> None:
    machine = bench.machine()
    with pytest.raises(ConfigError, match=r"--vhost-user socket=.*: cannot connect: No such file"):
        machine.build()


@pytest.mark.parametrize("deaf", [1, 15, GET_CONFIG])
def test_a_back_end_that_hangs_at_first_is_not_waited_for_for_ever(
    bench: Bench, deaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bench.backend()
    backend.deaf.add(deaf)
    machine = bench.machine()
    channel_wait = "nemu.vhost.user.channel.Channel.wait.__defaults__"
    monkeypatch.setattr(channel_wait, (0.2, -1))
    with pytest.raises(ConfigError, match="the back end does not answer"):
        machine.build()


def test_a_legacy_back_end_is_refused(bench: Bench) -> None:
    bench.backend(features=PROTOCOL)
    machine = bench.machine()
    with pytest.raises(ConfigError, match=r"offers no device of virtio 1\.0 or later"):
        machine.build()


def test_too_few_queues_are_a_mistake(bench: Bench) -> None:
    bench.backend(queues=1)
    machine = bench.started()
    machine.frontend.need_queues(1)
    with pytest.raises(ConfigError, match="the back end has 1 queues, 2 are needed"):
        machine.frontend.need_queues(2)


def test_a_feature_that_is_not_offered_is_tried_where_it_may_be_there(bench: Bench) -> None:
    backend = bench.backend(protocol=LASTING)
    machine = bench.started(force_inflight=True)
    assert backend.acked_protocol & INFLIGHT
    assert backend.log.count(GET_INFLIGHT) == 2
    assert machine.lines == []


def test_and_done_without_where_it_is_not(bench: Bench) -> None:
    backend = bench.backend(protocol=LASTING)
    backend.replies[GET_INFLIGHT] = lambda payload: (struct.pack("=IIIQ", GET_INFLIGHT, 5, 8, 1), 0)
    machine = bench.started(force_inflight=True)
    assert not backend.acked_protocol & INFLIGHT
    machine.send(b"works")
    assert machine.collect(1)[0].data == b"skrow"
