"""The SCSI controller: requests, task management and events, on a real image."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.driver import Buffer, Driver, FakeTransport, Used
from fakes.loop import FakeLoop
from nemu.backends.disk import Disk
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.scsi.bus import Bus
from nemu.scsi.disk import ScsiDisk
from nemu.virtio.scsi import VirtioScsi, parse_lun

BLOCKS = 64
# From virtio 1.2, section 5.6.6, by hand.
OK, OVERRUN, ABORTED, BAD_TARGET, RESET, FAILURE = 0, 1, 2, 3, 4, 9
SUCCEEDED, REJECTED, INCORRECT_LUN = 10, 11, 12
ABORT_TASK, ABORT_SET, CLEAR_ACA, CLEAR_SET, NEXUS_RESET, UNIT_RESET, QUERY, QUERY_SET = range(8)
RESPONSE = struct.Struct("<IIHBB")
READ_0 = struct.pack(">BBIBHB", 0x28, 0, 0, 0, 1, 0)


class Answer:
    """A response: 108 bytes before the data."""

    def __init__(self, used: Used) -> None:
        sense_size, self.residual, _, self.status, self.response = RESPONSE.unpack(used.data[:12])
        self.sense = used.data[12 : 12 + sense_size]
        self.data = used.data[108 : used.written]
        self.written = used.written


def lun(target: int, number: int) -> bytes:
    return bytes((1, target)) + struct.pack(">H", 0x4000 | number) + bytes(4)


class Rig:
    """Units at 0:0, 0:3 and 2:0, whose power-on attentions were taken."""

    def __init__(self, ram: GuestRam, path: Path) -> None:
        self.ram = ram
        self.path = path
        self.loop = FakeLoop()
        self.disk = Disk(str(path))
        self.bus = Bus()
        self.units = {address: ScsiDisk(self.disk, "x") for address in ((0, 0), (0, 3), (2, 0))}
        for address, unit in self.units.items():
            self.bus.add(address, unit)
        for unit in self.units.values():
            unit.attentions.clear()
        self.device = VirtioScsi("virtio-scsi0", self.bus, self.loop.lock, self.loop, queues=2)
        self.transport = FakeTransport()
        self.start()

    def start(self) -> None:
        self.ram.write(0x10000, bytes(0x100000))
        bases = range(0x10000, 0x110000, 0x40000)
        drivers = [Driver(self.ram, 32, base=base, end=base + 0x40000) for base in bases]
        self.control, self.events, self.driver, self.other = drivers
        queues = tuple(driver.queue() for driver in drivers)
        self.device.activate(self.device.features, queues, self.transport)

    def ask(
        self, cdb: bytes, data: bytes = b"", room: int = 0, at: tuple[int, int] = (0, 0), tag: int = 1
    ) -> Buffer:
        header = struct.pack("<8sQBBB32s", lun(*at), tag, 0, 0, 0, cdb)
        return self.driver.add([header, data] if data else [header], [108, room] if room else [108])

    def run(self, count: int = 1) -> list[Answer]:
        self.device.notify(2)
        return [Answer(used) for used in self.collect(self.driver, count)]

    def collect(self, driver: Driver, count: int) -> list[Used]:
        result: list[Used] = []

        def collected() -> bool:
            with self.loop.lock:
                result.extend(driver.collect())
            return len(result) >= count

        self.loop.until(collected)
        return result

    def request(self, cdb: bytes, data: bytes = b"", room: int = 0, at: tuple[int, int] = (0, 0)) -> Answer:
        self.ask(cdb, data, room, at)
        (answer,) = self.run()
        return answer

    def manage(self, function: int, at: bytes = lun(0, 0), tag: int = 1) -> int | None:
        """The response of a task management function; None while there is none."""
        self.control.add([struct.pack("<II8sQ", 0, function, at, tag)], [1])
        self.device.notify(0)
        used = self.control.collect()
        return used[0].data[0] if used else None


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(BLOCKS * 512))
    return path


@pytest.fixture
def rig(ram: GuestRam, image: Path) -> Iterator[Rig]:
    made = Rig(ram, image)
    yield made
    made.disk.close()
    assert made.transport.stopped == []


def transfer(opcode: int, lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", opcode, 0, lba, 0, blocks, 0)


# --- commands -----------------------------------------------------------------------------------


def test_reads_and_writes_move_data_between_image_and_guest(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    answer = rig.request(transfer(0x28, 3, 2), room=1024)
    assert (answer.response, answer.status, answer.residual) == (OK, 0, 0)
    assert answer.data == before[3 * 512 : 5 * 512]
    answer = rig.request(transfer(0x2A, 5, 1), data=b"w" * 512, at=(2, 0))
    assert (answer.response, answer.status, answer.residual, answer.written) == (OK, 0, 0, 108)
    assert image.read_bytes() == before[: 5 * 512] + b"w" * 512 + before[6 * 512 :]


def test_what_is_not_transferred_is_the_residual(rig: Rig) -> None:
    answer = rig.request(transfer(0x28, 0, 1), room=2000)
    assert (answer.residual, answer.written) == (2000 - 512, 108 + 512)
    answer = rig.request(bytes((0x12, 0, 0, 0, 255, 0)), room=255)
    assert answer.residual == 255 - 64
    answer = rig.request(transfer(0x2A, 0, 1), data=bytes(700))
    assert answer.residual == 700 - 512


def test_a_command_that_fails_has_sense_data_and_all_residual(rig: Rig) -> None:
    answer = rig.request(transfer(0x28, BLOCKS, 1), room=512)
    assert (answer.response, answer.status, answer.residual, answer.written) == (OK, 2, 512, 108)
    assert (answer.sense[2], answer.sense[12]) == (5, 0x21)


def test_a_buffer_shorter_than_the_command_wants_is_an_overrun(rig: Rig) -> None:
    assert rig.request(transfer(0x28, 0, 2), room=512).response == OVERRUN


def test_both_data_buffers_at_once_are_refused(rig: Rig, image: Path) -> None:
    before = image.read_bytes()
    assert rig.request(transfer(0x2A, 0, 1), data=b"x" * 512, room=512).response == FAILURE
    assert image.read_bytes() == before


def test_a_target_that_is_not_there_is_told_from_a_unit_that_is_not(rig: Rig) -> None:
    assert rig.request(bytes(6), at=(1, 0)).response == BAD_TARGET
    assert rig.request(bytes(6), at=(0, 1)).sense[12] == 0x25


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (b"\1\0\0\0\0\0\0\0", (0, 0)),
        (b"\1\xff\0\x07\0\0\0\0", (255, 7)),
        (b"\1\2\x41\x2c\0\0\0\0", (2, 300)),
        (b"\1\2\x7f\xff\0\0\0\0", (2, 16383)),
        (b"\0\0\0\0\0\0\0\0", None),
        (b"\xc1\1\0\0\0\0\0\0", None),
        (b"\1\0\x01\0\0\0\0\0", None),
        (b"\1\0\x80\0\0\0\0\0", None),
        (b"\1\0\xc0\0\0\0\0\0", None),
        (b"\1\0\0\0\0\0\0\1", None),
    ],
)
def test_addresses(address: bytes, expected: tuple[int, int] | None) -> None:
    assert parse_lun(address) == expected


def test_sizes_of_sense_data_and_commands_are_the_drivers(rig: Rig) -> None:
    rig.device.write_config(20, 4, 18)
    rig.device.write_config(24, 4, 10)
    header = struct.pack("<8sQBBB10s", lun(0, 0), 1, 0, 0, 0, transfer(0x28, 0, 1))
    rig.driver.add([header], [12 + 18, 512])
    rig.device.notify(2)
    (used,) = rig.collect(rig.driver, 1)
    assert used.data[30:] == rig.path.read_bytes()[:512]
    for offset, value in ((20, 0), (20, 253), (24, 1 << 31), (0, 7), (4, 1)):
        before = bytes(rig.device.config)
        rig.device.write_config(offset, 4, value)
        assert bytes(rig.device.config) == before
    rig.device.deactivate(lambda: None)
    assert struct.unpack_from("<II", rig.device.config, 20) == (96, 32)


def test_the_configuration(rig: Rig) -> None:
    fields = struct.unpack("<IIIIIIIHHI", rig.device.config)
    assert fields == (2, 254, 65535, 128, 16, 96, 32, 0, 15, 16383)
    bus = Bus()
    bus.add((77, 0), rig.units[0, 0])
    assert struct.unpack("<IIIIIIIHHI", VirtioScsi("x", bus, rig.loop.lock, rig.loop).config)[8] == 77


@pytest.mark.parametrize(("readable", "writable"), [([], [108]), ([bytes(50)], [108]), ([bytes(51)], [107])])
def test_a_request_without_a_command_or_room_stops_the_device(
    rig: Rig, readable: list[bytes], writable: list[int]
) -> None:
    rig.driver.add(readable, writable)
    with pytest.raises(GuestError, match="SCSI request"):
        rig.device.notify(2)


def test_every_request_queue_serves(rig: Rig) -> None:
    rig.other.add([struct.pack("<8sQBBB32s", lun(0, 0), 1, 0, 0, 0, READ_0)], [108, 512])
    rig.device.notify(3)
    (used,) = rig.collect(rig.other, 1)
    assert used.data[108:] == rig.path.read_bytes()[:512]
    rig.device.notify(9)


# --- task management ---------------------------------------------------------------------------------


class Gate:
    """Holds the workers inside pwritev until ``open``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        real = os.pwritev

        def pwritev(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
            if flags & os.RWF_NOWAIT:
                raise BlockingIOError
            self.entered.release()
            assert self._open.wait(10)
            return real(fd, buffers, offset, flags)

        monkeypatch.setattr(os, "pwritev", pwritev)

    def open(self) -> None:
        self._open.set()


def test_with_nothing_in_flight_functions_end_at_once(rig: Rig) -> None:
    for function in (ABORT_TASK, ABORT_SET, CLEAR_SET, NEXUS_RESET, UNIT_RESET, QUERY, QUERY_SET):
        assert rig.manage(function) == OK
    for function in (CLEAR_ACA, 8, 0xFFFFFFFF):
        assert rig.manage(function) == REJECTED
    assert rig.manage(ABORT_TASK, lun(1, 0)) == BAD_TARGET
    assert rig.manage(ABORT_TASK, bytes(8)) == BAD_TARGET
    assert rig.manage(UNIT_RESET, lun(0, 1)) == INCORRECT_LUN
    assert rig.manage(NEXUS_RESET, lun(0, 1)) == OK


def test_a_reset_is_an_attention_of_what_was_reset(rig: Rig) -> None:
    assert rig.manage(UNIT_RESET, lun(0, 3)) == OK
    assert rig.request(bytes(6)).status == 0
    assert rig.request(bytes(6), at=(0, 3)).sense[12] == 0x29
    assert rig.manage(NEXUS_RESET, lun(0, 3)) == OK
    assert rig.request(bytes(6)).sense[12] == 0x29
    assert rig.request(bytes(6), at=(2, 0)).status == 0


@pytest.mark.parametrize(
    ("function", "at", "responses"),
    [
        (ABORT_TASK, (0, 0), {1: ABORTED}),
        (ABORT_SET, (0, 0), {1: ABORTED, 2: ABORTED}),
        (CLEAR_SET, (0, 0), {1: ABORTED, 2: ABORTED}),
        (UNIT_RESET, (0, 0), {1: RESET, 2: RESET}),
        (NEXUS_RESET, (0, 0), {1: RESET, 2: RESET, 3: RESET}),
    ],
)
def test_an_abort_answers_when_its_tasks_have_ended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, function: int, at: tuple[int, int], responses: dict[int, int]
) -> None:
    gate = Gate(monkeypatch)
    places = {1: (0, 0), 2: (0, 0), 3: (0, 3), 4: (2, 0)}
    heads = {
        rig.ask(transfer(0x2A, tag, 1), bytes((tag,)) * 512, at=place, tag=tag).head: tag
        for tag, place in places.items()
    }
    rig.device.notify(2)
    for _ in places:
        assert gate.entered.acquire(timeout=5)
    assert rig.manage(QUERY, tag=1) == SUCCEEDED
    assert rig.manage(QUERY, tag=9) == OK
    assert rig.manage(QUERY_SET) == SUCCEEDED
    assert rig.manage(function, lun(*at), tag=1) is None
    assert rig.driver.collect() == []
    gate.open()
    seen = {heads[used.buffer.head]: Answer(used) for used in rig.collect(rig.driver, len(places))}
    assert {tag: answer.response for tag, answer in seen.items()} == {
        tag: responses.get(tag, OK) for tag in places
    }
    assert all(answer.residual == 512 for tag, answer in seen.items() if tag in responses)
    (ended,) = rig.collect(rig.control, 1)
    assert ended.data == bytes((OK,))


def test_what_has_not_begun_is_not_begun_after_an_abort(
    rig: Rig, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    before = image.read_bytes()
    for tag in range(8):  # twice as many as there are workers
        rig.ask(transfer(0x2A, 8 + tag, 1), b"x" * 512, tag=tag)
    rig.device.notify(2)
    for _ in range(4):
        assert gate.entered.acquire(timeout=5)
    assert rig.manage(ABORT_SET) is None
    gate.open()
    assert {Answer(used).response for used in rig.collect(rig.driver, 8)} == {ABORTED}
    rig.collect(rig.control, 1)
    after = image.read_bytes()
    assert sum(before[n * 512 : n * 512 + 512] != after[n * 512 : n * 512 + 512] for n in range(BLOCKS)) == 4


def test_a_reset_of_the_device_waits_for_io_in_flight(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    rig.ask(transfer(0x2A, 0, 1), bytes(512))
    rig.device.notify(2)
    assert gate.entered.acquire(timeout=5)
    assert rig.manage(ABORT_SET) is None
    done: list[bool] = []
    with rig.loop.lock:
        rig.device.deactivate(lambda: done.append(True))
        assert done == []
    gate.open()
    rig.loop.until(lambda: bool(done))
    assert rig.driver.collect() == rig.control.collect() == []
    rig.start()
    assert rig.request(READ_0, room=512).status == 0


@pytest.mark.parametrize("kind", [1, 2])
def test_no_event_can_be_subscribed_to(rig: Rig, kind: int) -> None:
    rig.control.add([struct.pack("<I8sI", kind, lun(0, 0), 0x7E)], [5])
    rig.device.notify(0)
    (used,) = rig.control.collect()
    assert used.data == bytes(5)


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ([], [1]),
        ([bytes(23)], [1]),
        ([bytes(24)], []),
        ([b"\3" + bytes(23)], [5]),
        ([b"\1" + bytes(15)], [4]),
    ],
)
def test_a_wrong_control_request_stops_the_device(
    rig: Rig, readable: list[bytes], writable: list[int]
) -> None:
    rig.control.add(readable, writable)
    with pytest.raises(GuestError, match="control request"):
        rig.device.notify(0)


# --- units that come and go ------------------------------------------------------------------------------


def event(used: Used) -> tuple[int, bytes, int]:
    assert used.written == 16
    kind, address, reason = struct.unpack("<I8sI", used.data)
    return kind, address, reason


def test_a_unit_that_comes_or_goes_is_an_event(rig: Rig) -> None:
    for _ in range(3):
        rig.events.add(writable=[16])
    rig.device.notify(1)
    rig.device.add((5, 300), ScsiDisk(rig.disk, "new"))
    assert rig.request(bytes(6), at=(5, 300)).sense[12] == 0x29
    assert rig.request(READ_0, room=512, at=(5, 300)).status == 0
    rig.device.remove((5, 300))
    assert rig.request(bytes(6), at=(5, 300)).response == BAD_TARGET
    assert [event(used) for used in rig.events.collect()] == [(1, lun(5, 300), 1), (1, lun(5, 300), 2)]


def test_an_event_without_a_buffer_is_told_with_the_next(rig: Rig) -> None:
    rig.device.add((5, 0), ScsiDisk(rig.disk, "new"))
    rig.events.add(writable=[16])
    rig.device.notify(1)
    assert [event(used) for used in rig.events.collect()] == [(1 << 31, bytes(8), 0)]
    rig.events.add(writable=[16])
    rig.device.notify(1)
    rig.device.remove((5, 0))
    assert [event(used)[0] for used in rig.events.collect()] == [1]


def test_a_driver_without_hotplug_hears_nothing(rig: Rig) -> None:
    rig.device.deactivate(lambda: None)
    rig.device.features = 0
    rig.start()
    rig.events.add(writable=[16])
    rig.device.add((5, 0), ScsiDisk(rig.disk, "new"))
    assert rig.events.collect() == []


def test_a_buffer_that_is_no_room_for_an_event_stops_the_device(rig: Rig) -> None:
    rig.events.add(writable=[15])
    rig.device.add((5, 0), ScsiDisk(rig.disk, "new"))
    assert [str(error) for error in rig.transport.stopped] == ["a buffer for an event without room"]
    rig.transport.stopped.clear()


# --- anything -----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.tuples(
            st.binary(min_size=6, max_size=32),
            st.binary(max_size=1100),
            st.integers(0, 1100),
            st.sampled_from([(0, 0), (0, 3), (2, 0), (1, 0), (0, 1)]),
        ),
        min_size=1,
        max_size=6,
    ),
    tasks=st.lists(st.binary(min_size=24, max_size=24), max_size=3),
)
def test_no_request_is_more_than_an_answer(
    *, rig: Rig, requests: list[tuple[bytes, bytes, int, tuple[int, int]]], tasks: list[bytes]
) -> None:
    size = rig.disk.size
    rig.device.deactivate(lambda: None)
    rig.start()
    for cdb, data, room, at in requests:
        rig.ask(cdb, data, room, at)
    rig.device.notify(2)
    for task in tasks:
        rig.control.add([bytes(4) + task[4:]], [1])
    rig.device.notify(0)
    answers = [Answer(used) for used in rig.collect(rig.driver, len(requests))]
    rig.collect(rig.control, len(tasks))
    assert all(answer.response <= FAILURE for answer in answers)
    assert os.path.getsize(rig.path) == size
