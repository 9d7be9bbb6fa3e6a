"""The virtio-pci transport, driven through ECAM and BAR 0 as a driver does (virtio 1.2, 4.1)."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.bus import FakeBus
from fakes.device import FakeDevice
from fakes.driver import RAM_SIZE
from fakes.loop import FakeLoop
from fakes.pages import FakePages
from fakes.router import FakeRouter
from nemu.errors import GuestError
from nemu.memory import GuestRam
from nemu.pci.host import BUS_SIZE, HostBridge
from nemu.virtio.pci import BAR_SIZE, PAGES_SIZE, VirtioPci

# 2.1 and 6, from the specification
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
VERSION_1, EVENT_IDX = 1 << 32, 1 << 29
NO_VECTOR = 0xFFFF

# 4.1.4.3: offset and width in the common configuration
DEVICE_FEATURE_SELECT, DEVICE_FEATURE = (0x00, 4), (0x04, 4)
DRIVER_FEATURE_SELECT, DRIVER_FEATURE = (0x08, 4), (0x0C, 4)
CONFIG_VECTOR, NUM_QUEUES = (0x10, 2), (0x12, 2)
STATUS, GENERATION, QUEUE_SELECT = (0x14, 1), (0x15, 1), (0x16, 2)
QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE = (0x18, 2), (0x1A, 2), (0x1C, 2)
QUEUE_NOTIFY_OFF, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = (0x1E, 2), (0x20, 8), (0x28, 8), (0x30, 8)

FUNCTION = 1 << 15


class Wired:
    """A device in slot 1.  Registers are found by the capabilities, as a driver finds them."""

    def __init__(self, config: bytes = b"\x11\x22\x33\x44\x55\x66\x77\x88") -> None:
        self.ram = GuestRam([(0, RAM_SIZE)])
        self.ecam = FakePages(BUS_SIZE)
        self.pages = FakePages(PAGES_SIZE)
        self.bus = FakeBus()
        self.loop = FakeLoop()
        self.router = FakeRouter()
        self.device = FakeDevice(config)
        self.host = HostBridge(self.bus, self.ecam, 0x8000_0000, 256 << 20, [(0x9000_0000, 0xFEA0_0000)])
        self.transport = VirtioPci(
            self.device,
            self.host,
            1,
            pages=self.pages,
            memory=self.ram,
            loop=self.loop,
            router=self.router,
        )
        self.capabilities = dict(self._walk())
        self.common = self.capabilities[1][0]

    def _walk(self) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        """cfg_type -> (offset, length, what follows); 0 is MSI-X."""
        view = self.ecam.view[FUNCTION : FUNCTION + 4096]
        pointer = view[0x34]
        while pointer:
            if view[pointer] == 9:
                _, _, size, kind, bar, _, offset, length = struct.unpack_from("<BBBBB3sII", view, pointer)
                assert bar == 0
                assert offset + length <= BAR_SIZE
                yield kind, (offset, length, bytes(view[pointer + 16 : pointer + size]))
            else:
                assert view[pointer] == 0x11
                control, table, pending = struct.unpack_from("<HII", view, pointer + 2)
                self.msix_control = pointer + 2
                yield 0, (table, (control & 0x7FF) + 1, struct.pack("<I", pending))
            pointer = view[pointer + 1]

    def get(self, register: tuple[int, int]) -> int:
        """As the guest: from the page, without an exit."""
        offset, width = register
        at = self.common + offset
        return int.from_bytes(self.pages.view[at : at + width], "little")

    def put(self, register: tuple[int, int], value: int) -> None:
        offset, width = register
        self.transport.write(self.common + offset, width, value)

    def features(self) -> int:
        value = 0
        for half in range(2):
            self.put(DEVICE_FEATURE_SELECT, half)
            value |= self.get(DEVICE_FEATURE) << 32 * half
        return value

    def accept(self, features: int) -> None:
        for half in range(2):
            self.put(DRIVER_FEATURE_SELECT, half)
            self.put(DRIVER_FEATURE, features >> 32 * half & 0xFFFF_FFFF)

    def set_queue(self, index: int, base: int, size: int = 8, vector: int = NO_VECTOR) -> None:
        self.put(QUEUE_SELECT, index)
        self.put(QUEUE_SIZE, size)
        self.put(QUEUE_VECTOR, vector)
        self.put(QUEUE_DESC, base)
        self.put(QUEUE_DRIVER, base + 0x1000)
        self.put(QUEUE_DEVICE, base + 0x2000)
        self.put(QUEUE_ENABLE, 1)

    def start(self, features: int = VERSION_1) -> None:
        self.put(STATUS, ACKNOWLEDGE)
        self.put(STATUS, ACKNOWLEDGE | DRIVER)
        self.accept(features)
        self.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        self.set_queue(0, 0x10000)
        self.set_queue(1, 0x20000)
        self.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def enable_msix(self) -> None:
        self.host.write(FUNCTION + self.msix_control, 2, 0x8000)
        table = self.capabilities[0][0]
        for index in range(self.capabilities[0][1]):
            self.transport.write(table + 16 * index, 8, 0xFEE0_0000)
            self.transport.write(table + 16 * index + 8, 8, 0x40 + index)

    def kick(self, index: int) -> None:
        offset, _, extra = self.capabilities[2]
        self.transport.write(offset + index * struct.unpack("<I", extra)[0], 2, index)

    def close(self) -> None:
        self.transport.close()
        self.ram.close()


@pytest.fixture
def wired() -> Iterator[Wired]:
    one = Wired()
    yield one
    one.close()


RUNNING = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


# --- what a driver finds ---------------------------------------------------------------------


def test_it_is_a_modern_device_with_every_structure_in_bar_0(wired: Wired) -> None:
    assert struct.unpack_from("<HH", wired.ecam.view, FUNCTION) == (0x1AF4, 0x1040 + 42)
    assert wired.ecam.view[FUNCTION + 8] >= 1  # 4.1.2.1: revision of a non-transitional device
    assert set(wired.capabilities) == {0, 1, 2, 3, 4, 5}
    ranges = sorted(
        (offset, offset + length * (16 if kind == 0 else 1))
        for kind, (offset, length, _) in wired.capabilities.items()
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert wired.capabilities[0][1] == 3  # a vector for each queue and one for the configuration
    assert wired.capabilities[4][1] == 8


def test_the_bar_has_doorbells_at_the_notify_addresses(wired: Wired) -> None:
    wired.host.write(FUNCTION + 4, 2, 2)
    (window,) = (window for window in wired.bus.placed if window.name == wired.device.name)
    offset, _, extra = wired.capabilities[2]
    (multiplier,) = struct.unpack("<I", extra)
    assert [bell.offset for bell in window.doorbells] == [offset, offset + multiplier]
    assert window.pages is wired.pages
    assert min(bell.offset for bell in window.doorbells) >= wired.pages.size
    assert window.size == BAR_SIZE


def test_power_on_values(wired: Wired) -> None:
    assert wired.get(NUM_QUEUES) == 2
    assert wired.get(STATUS) == 0
    assert wired.get(CONFIG_VECTOR) == NO_VECTOR
    assert wired.features() == VERSION_1 | EVENT_IDX | 1 << 28 | 1 << 3 | 1 << 5
    sizes = []
    for index in range(3):
        wired.put(QUEUE_SELECT, index)
        sizes.append((wired.get(QUEUE_SIZE), wired.get(QUEUE_ENABLE), wired.get(QUEUE_VECTOR)))
    assert sizes == [(64, 0, NO_VECTOR), (8, 0, NO_VECTOR), (0, 0, NO_VECTOR)]


def test_the_device_configuration_is_readable_and_writable_through_the_device(wired: Wired) -> None:
    offset = wired.capabilities[4][0]
    assert wired.pages.view[offset : offset + 8] == wired.device.config
    wired.transport.write(offset + 2, 2, 0xBEEF)
    assert wired.device.config == b"\x11\x22\xef\xbe\x55\x66\x77\x88"
    assert wired.pages.view[offset : offset + 8] == wired.device.config
    wired.transport.write(offset + 6, 8, 0)  # beyond its end
    wired.transport.write(offset + 8, 4, 0)
    assert len(wired.device.config) == 8


# --- negotiation ---------------------------------------------------------------------------------


def test_a_driver_that_follows_the_steps_gets_an_active_device(wired: Wired) -> None:
    wired.start(VERSION_1 | EVENT_IDX | 1 << 3)
    assert wired.get(STATUS) == RUNNING
    ((features, queues),) = wired.device.activations
    assert features == VERSION_1 | EVENT_IDX | 1 << 3
    assert [queue.size if queue else None for queue in queues] == [8, 8]


@pytest.mark.parametrize("features", [0, 1 << 3, VERSION_1 | 1 << 4, VERSION_1 | 1 << 63, (1 << 64) - 1])
def test_features_that_were_not_offered_or_no_version_1_are_refused(wired: Wired, features: int) -> None:
    wired.put(STATUS, ACKNOWLEDGE | DRIVER)
    wired.accept(features)
    wired.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    assert wired.get(STATUS) == ACKNOWLEDGE | DRIVER
    wired.put(STATUS, RUNNING)  # a driver that goes on all the same
    assert wired.get(STATUS) == ACKNOWLEDGE | DRIVER
    assert wired.device.activations == []


def test_driver_ok_without_features_ok_does_nothing(wired: Wired) -> None:
    wired.accept(VERSION_1)
    wired.put(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert wired.get(STATUS) == ACKNOWLEDGE | DRIVER
    assert wired.device.activations == []


def test_features_are_frozen_by_features_ok(wired: Wired) -> None:
    wired.start()
    wired.accept((1 << 64) - 1)
    wired.put(DRIVER_FEATURE_SELECT, 1)
    assert wired.get(DRIVER_FEATURE) == 1


def test_feature_words_above_the_second_are_zero_and_take_nothing(wired: Wired) -> None:
    for select in (2, 3, 0x7FFF_FFFF, 0xFFFF_FFFF):
        wired.put(DEVICE_FEATURE_SELECT, select)
        wired.put(DRIVER_FEATURE_SELECT, select)
        wired.put(DRIVER_FEATURE, 0xFFFF_FFFF)
        assert (wired.get(DEVICE_FEATURE), wired.get(DRIVER_FEATURE)) == (0, 0)


def test_status_bits_only_come_and_never_go_but_by_a_reset(wired: Wired) -> None:
    wired.start()
    wired.put(STATUS, ACKNOWLEDGE)
    assert wired.get(STATUS) == RUNNING
    wired.put(STATUS, 0xFF)
    assert wired.get(STATUS) == RUNNING | 128  # FAILED, and no reserved or device-owned bit
    assert len(wired.device.activations) == 1


def test_read_only_registers_stay(wired: Wired) -> None:
    for register in (DEVICE_FEATURE, NUM_QUEUES, GENERATION, QUEUE_NOTIFY_OFF):
        before = wired.get(register)
        wired.put(register, 0x5A5A_5A5A & (1 << 8 * register[1]) - 1)
        assert wired.get(register) == before


# --- queues ---------------------------------------------------------------------------------------


def test_queue_registers_are_kept_for_each_queue(wired: Wired) -> None:
    wired.set_queue(0, 0x10000, size=16, vector=1)
    wired.set_queue(1, 0x1234_5678_9000, size=4, vector=2)
    wired.put(QUEUE_SELECT, 0)
    registers = (QUEUE_SIZE, QUEUE_VECTOR, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE, QUEUE_ENABLE)
    assert [wired.get(register) for register in registers] == [16, 1, 0x10000, 0x11000, 0x12000, 1]
    wired.put(QUEUE_SELECT, 1)
    assert [wired.get(register) for register in registers[:3]] == [4, 2, 0x1234_5678_9000]
    assert wired.get(QUEUE_NOTIFY_OFF) == 1


def test_addresses_can_be_written_in_halves(wired: Wired) -> None:
    wired.put((0x20, 4), 0x9ABC_DEF0)
    wired.put((0x24, 4), 0x1234_5678)
    assert wired.get(QUEUE_DESC) == 0x1234_5678_9ABC_DEF0


def test_a_queue_that_does_not_exist_takes_nothing(wired: Wired) -> None:
    wired.set_queue(2, 0x10000)
    wired.set_queue(0xFFFF, 0x10000)
    assert [wired.get(register) for register in (QUEUE_SIZE, QUEUE_DESC, QUEUE_ENABLE)] == [0, 0, 0]


def test_a_vector_that_does_not_exist_reads_back_as_none(wired: Wired) -> None:
    for value in (3, 128, 0xFFFE):
        wired.put(CONFIG_VECTOR, value)
        wired.put(QUEUE_VECTOR, value)
        assert (wired.get(CONFIG_VECTOR), wired.get(QUEUE_VECTOR)) == (NO_VECTOR, NO_VECTOR)
    wired.put(CONFIG_VECTOR, 2)
    assert wired.get(CONFIG_VECTOR) == 2


def test_queues_of_an_active_device_cannot_be_changed(wired: Wired) -> None:
    wired.start()
    wired.put(QUEUE_SELECT, 0)
    wired.put(QUEUE_DESC, 0xDEAD_0000)
    wired.put(QUEUE_SIZE, 1)
    assert (wired.get(QUEUE_DESC), wired.get(QUEUE_SIZE)) == (0x10000, 8)


def test_a_queue_that_was_not_enabled_is_none(wired: Wired) -> None:
    wired.accept(VERSION_1)
    wired.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    wired.set_queue(1, 0x20000)
    wired.put(STATUS, RUNNING)
    ((_, queues),) = wired.device.activations
    assert queues[0] is None
    assert queues[1] is not None


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (QUEUE_SIZE, 0),
        (QUEUE_SIZE, 9),
        (QUEUE_SIZE, 128),  # above what was offered
        (QUEUE_SIZE, 0xFFFF),
        (QUEUE_DESC, RAM_SIZE - 16),
        (QUEUE_DESC, (1 << 64) - 16),
        (QUEUE_DESC, 0x10001),
        (QUEUE_DRIVER, 1 << 63),
        (QUEUE_DEVICE, (1 << 64) - 4),
        (QUEUE_DEVICE, 0x8000_0000),
    ],
)
def test_a_bad_queue_stops_the_device_at_driver_ok(
    wired: Wired, capsys: pytest.CaptureFixture[str], register: tuple[int, int], value: int
) -> None:
    wired.accept(VERSION_1)
    wired.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    wired.set_queue(0, 0x10000)
    wired.put(register, value)
    wired.put(STATUS, RUNNING)
    assert wired.get(STATUS) == RUNNING | NEEDS_RESET
    assert wired.device.activations == []
    assert wired.loop.readers == {}
    assert capsys.readouterr().err.startswith("nemu: virtio-fake0 stopped: ")


# --- notifications and interrupts -----------------------------------------------------------------


def test_a_kick_reaches_its_queue(wired: Wired) -> None:
    wired.start()
    wired.kick(1)
    wired.kick(0)
    wired.kick(0)
    wired.loop.settle()
    assert sorted(wired.device.notified) == [0, 1]


def test_kicks_of_an_idle_device_are_kept_until_it_is_active(wired: Wired) -> None:
    wired.kick(0)
    wired.loop.settle()
    assert wired.device.notified == []
    wired.start()
    wired.loop.settle()
    assert wired.device.notified == [0]


def test_a_late_event_of_a_drained_doorbell_does_nothing(wired: Wired) -> None:
    wired.start()
    for callback in wired.loop.readers.values():  # as after a reset between the poll and the callback
        callback()
    assert wired.device.notified == []


def test_queue_and_configuration_interrupts_use_their_vectors(wired: Wired) -> None:
    wired.enable_msix()
    wired.put(CONFIG_VECTOR, 0)
    wired.accept(VERSION_1)
    wired.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    wired.set_queue(1, 0x20000, vector=2)
    wired.put(STATUS, RUNNING)
    queue = wired.device.activations[0][1][1]
    assert queue is not None
    wired.ram.write(0x20000, struct.pack("<QIHH", 0x30000, 16, 2, 0))
    wired.ram.write(0x21000, struct.pack("<HHH", 0, 1, 0))
    chain = queue.pop()
    assert chain is not None
    queue.push(chain.head, 0)
    queue.flush()
    assert wired.router.sent == [(0xFEE0_0000, 0x42)]
    assert wired.device.transport is not None
    wired.device.transport.config_changed()
    assert wired.router.sent == [(0xFEE0_0000, 0x42), (0xFEE0_0000, 0x40)]


def test_without_a_vector_the_isr_tells_and_a_read_clears_it(wired: Wired) -> None:
    wired.start()
    assert wired.device.transport is not None
    wired.device.transport.config_changed()
    isr = wired.capabilities[3][0]
    assert [wired.transport.read(isr, 1), wired.transport.read(isr, 1)] == [2, 0]


def test_a_changed_configuration_has_another_generation(wired: Wired) -> None:
    wired.start()
    before = wired.get(GENERATION)
    wired.device.config[0] = 0x99
    assert wired.device.transport is not None
    wired.device.transport.config_changed()
    assert wired.get(GENERATION) != before
    assert wired.pages.view[wired.capabilities[4][0]] == 0x99
    for _ in range(300):  # the counter is one byte
        wired.device.transport.config_changed()


# --- reset and stop ---------------------------------------------------------------------------------


def test_a_reset_gives_power_on_values(wired: Wired) -> None:
    before = bytes(wired.pages.view)
    wired.start()
    wired.put(STATUS, 0)
    wired.put(QUEUE_SELECT, 0)
    wired.put(DEVICE_FEATURE_SELECT, 0)
    assert wired.pages.view == before
    assert wired.loop.readers == {}
    wired.start()
    assert len(wired.device.activations) == 2


def test_a_reset_with_io_in_flight_reads_zero_only_when_it_is_done(wired: Wired) -> None:
    wired.start()
    wired.device.busy = True
    wired.put(STATUS, 0)
    assert wired.get(STATUS) == RUNNING
    wired.device.finish_io()
    assert wired.get(STATUS) == 0


def test_more_resets_while_one_waits_are_the_same_reset(wired: Wired) -> None:
    wired.start()
    wired.device.busy = True
    for _ in range(3):
        wired.put(STATUS, 0)
    assert (wired.get(STATUS), wired.device.deactivations) == (RUNNING, 1)
    wired.device.finish_io()
    wired.start()
    assert wired.get(STATUS) == RUNNING


def test_nothing_starts_again_while_a_reset_waits(wired: Wired) -> None:
    wired.start()
    wired.device.busy = True
    wired.put(STATUS, 0)
    wired.set_queue(0, 0x30000)
    wired.put(STATUS, RUNNING)
    assert len(wired.device.activations) == 1
    wired.device.finish_io()
    assert wired.get(STATUS) == 0
    wired.put(QUEUE_SELECT, 0)
    assert wired.get(QUEUE_ENABLE) == 0


def test_a_stopped_device_with_io_in_flight_is_reset_only_when_it_is_done(wired: Wired) -> None:
    wired.start()
    wired.device.busy = True
    wired.transport.stop(GuestError("bad"))
    wired.put(STATUS, 0)
    assert wired.get(STATUS) == RUNNING | NEEDS_RESET
    wired.device.finish_io()
    assert wired.get(STATUS) == 0


def test_io_that_ends_after_a_stop_is_no_reset(wired: Wired) -> None:
    wired.start()
    wired.device.busy = True
    wired.transport.stop(GuestError("bad"))
    wired.device.finish_io()
    assert wired.get(STATUS) == RUNNING | NEEDS_RESET


def test_a_bad_chain_stops_only_this_device_and_tells_the_driver(wired: Wired) -> None:
    wired.enable_msix()
    wired.put(CONFIG_VECTOR, 1)
    wired.start()
    wired.device.fault = GuestError("a bad chain")
    wired.kick(0)
    wired.loop.settle()
    assert wired.get(STATUS) == RUNNING | NEEDS_RESET
    assert wired.router.sent == [(0xFEE0_0000, 0x41)]
    wired.kick(0)
    wired.loop.settle()
    assert wired.device.notified == [0]


def test_a_stopped_device_is_not_started_by_another_driver_ok(wired: Wired) -> None:
    wired.start()
    wired.transport.stop(GuestError("bad"))
    wired.put(STATUS, RUNNING)
    assert len(wired.device.activations) == 1


def test_offending_in_a_loop_is_logged_once(wired: Wired, capsys: pytest.CaptureFixture[str]) -> None:
    wired.device.fault = GuestError("a bad chain")
    for _ in range(100):
        wired.start()
        wired.kick(0)
        wired.loop.settle()
        assert wired.get(STATUS) & NEEDS_RESET
        wired.put(STATUS, 0)
    assert capsys.readouterr().err == "nemu: virtio-fake0 stopped: a bad chain\n"


def test_a_device_that_stops_itself_while_it_starts_is_not_listened_to(wired: Wired) -> None:
    class Hasty(FakeDevice):
        def activate(self, features, queues, transport):  # type: ignore[no-untyped-def]
            transport.stop(GuestError("at once"))

    wired.device.__class__ = Hasty
    wired.start()
    assert wired.get(STATUS) == RUNNING | NEEDS_RESET
    assert wired.loop.readers == {}


def test_closing_gives_everything_back() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    one = Wired()
    one.host.write(FUNCTION + 4, 2, 2)
    one.start()
    one.device.activations.clear()  # the queues' views of guest RAM would keep it mapped
    one.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert one.device.closed == 1
    assert [window.name for window in one.bus.placed] == ["ecam"]
    assert one.loop.readers == {}


# --- anything at all -----------------------------------------------------------------------------------

WIDE = st.one_of(
    st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, 0x0F, 0xFFFF, 0x8000, RAM_SIZE, (1 << 64) - 1])
)
ACCESSES = st.tuples(
    st.one_of(
        st.integers(0, 0x3F),
        st.sampled_from([0x14, 0x16, 0x18, 0x1C, 0x20]),
        st.integers(0x200, 0x210),
        st.integers(0x1000, 0x1040),
        st.integers(0x1FF8, 0x200F),
        st.integers(0x2FF8, 0x3008),
        st.integers(0, BAR_SIZE - 8),
    ),
    st.integers(1, 8),
    WIDE,
    st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(ACCESSES, max_size=60), st.booleans())
def test_no_access_raises_grows_or_stays_in_the_way(
    accesses: list[tuple[int, int, int, bool]], started: bool
) -> None:
    one = Wired()
    try:
        if started:
            one.start()
        vectors, config = len(one.router.connected), len(one.device.config)
        for offset, width, value, is_write in accesses:
            if is_write:
                one.transport.write(offset, width, value & (1 << 8 * width) - 1)
            else:
                assert 0 <= one.transport.read(offset, width) < 1 << 8 * width
            one.transport.register_name(offset)
            one.loop.settle()
        assert len(one.device.config) == config
        assert len(one.router.connected) <= vectors + 3
        assert len(one.loop.readers) <= 2
        # A driver that behaves finds a working device behind all that.
        one.put(STATUS, 0)
        one.start()
        assert one.get(STATUS) == RUNNING
    finally:
        one.close()
        sys.stderr.flush()
