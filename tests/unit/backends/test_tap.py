"""Tap interfaces.  Those that need a real one make it, and say so where they may not."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from fakes.driver import RAM_SIZE, Driver, FakeTransport
from fakes.loop import FakeLoop
from nemu.backends import tap as tap_module
from nemu.backends.tap import (
    OFFLOADS,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUNSETIFF,
    TUNSETOFFLOAD,
    Tap,
    inherited_tap,
    open_tap,
)
from nemu.errors import ConfigError, HostError
from nemu.memory import GuestRam
from nemu.virtio.net import F_MRG_RXBUF, RECEIVE, TRANSMIT, VirtioNet, stable_mac

NAME = f"nemu{os.getpid() % 0xFFFFFF:x}t"
BROADCAST = b"\xff" * 6
TEST_PROTOCOL = b"\x88\xb5"  # IEEE 802 local experimental ethertype


def may_make_taps() -> bool:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), 0x1002))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


needs_tap = pytest.mark.skipif(not may_make_taps(), reason="may not make a tap interface here (needs root)")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def tap() -> Iterator[Tap]:
    ip("tuntap", "add", NAME, "mode", "tap")
    ip("link", "set", NAME, "up")
    opened = open_tap(NAME)
    yield opened
    opened.close()
    ip("link", "delete", NAME)


@pytest.fixture
def wire(tap: Tap) -> Iterator[socket.socket]:
    """The host's side of the tap."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
        raw.bind((NAME, 0))
        raw.settimeout(5)
        yield raw


def next_test_frame(wire: socket.socket) -> bytes:
    """The host sends its own (IPv6 discovery) on a new interface as well."""
    while (frame := wire.recv(70_000))[12:14] != TEST_PROTOCOL:
        pass
    return frame


@needs_tap
def test_frames_pass_between_the_host_and_a_guest_driver(tap: Tap, wire: socket.socket) -> None:
    ram, loop, transport = GuestRam([(0, RAM_SIZE)]), FakeLoop(), FakeTransport()
    device = VirtioNet("virtio-net0", tap, stable_mac(tap.name), loop, print)
    receive = Driver(ram, 64, base=0x10000, end=0x100000)
    transmit = Driver(ram, 64, base=0x100000, end=0x200000)
    device.activate(device.features, (receive.queue(), transmit.queue()), transport)
    to_host = BROADCAST + stable_mac("guest") + TEST_PROTOCOL + b"from the guest".ljust(46, b".")
    transmit.add([bytes(12), to_host])
    device.notify(TRANSMIT)
    assert next_test_frame(wire) == to_host

    for _ in range(60):
        receive.add(writable=[1536])
    device.notify(RECEIVE)
    to_guest = BROADCAST + stable_mac("host") + TEST_PROTOCOL + b"from the host".ljust(1400, b".")
    wire.send(to_guest)
    frames: list[bytes] = []

    def arrived() -> bool:
        for used in receive.collect():
            assert struct.unpack_from("<H", used.data, 10) == (1,)
            frames.append(used.data[12 : used.written])
        return to_guest in frames

    loop.until(arrived)
    device.deactivate(lambda: None)
    ram.close()


@needs_tap
def test_an_unanswerable_header_of_the_guest_is_dropped_by_the_kernel(tap: Tap, wire: socket.socket) -> None:
    frame = BROADCAST + stable_mac("guest") + TEST_PROTOCOL + bytes(46)
    bad = struct.pack("<BBHHHHH", 1, 5, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0)
    assert tap.send([memoryview(bad + frame)]) is True
    assert tap.send([memoryview(bytes(12) + frame)]) is True
    assert next_test_frame(wire) == frame


@needs_tap
def test_an_idle_tap_gives_nothing_and_does_not_block(tap: Tap) -> None:
    while tap.receive([memoryview(bytearray(70_000))]):
        pass  # what the host says by itself on a new interface
    assert os.get_blocking(tap.fd) is False


@needs_tap
def test_a_busy_tap_is_refused(tap: Tap) -> None:
    with pytest.raises(ConfigError, match=f"--net tap={NAME}: is in use by another program"):
        open_tap(NAME)


@needs_tap
def test_an_inherited_descriptor_is_recognized_and_not_inherited_further(tap: Tap) -> None:
    os.set_blocking(tap.fd, True)
    other = inherited_tap(os.dup(tap.fd))
    assert (other.name, other.features) == (NAME, OFFLOADS)
    assert os.get_blocking(other.fd) is False
    assert os.get_inheritable(other.fd) is False
    other.close()


@needs_tap
def test_a_tap_without_the_offload_header_works_without_offloads(wire: socket.socket, tap: Tap) -> None:
    name = NAME[:-1] + "p"
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), 0x1002))
    ip("link", "set", name, "up")
    plain = inherited_tap(fd)
    assert plain.features == 0
    plain.set_features(0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
        raw.bind((name, 0))
        frame = BROADCAST + stable_mac("x") + TEST_PROTOCOL + bytes(46)
        raw.settimeout(5)
        assert plain.send([memoryview(bytes(12)), memoryview(frame)])
        assert next_test_frame(raw) == frame
        raw.send(frame)
        buffer = memoryview(bytearray(b"\xee" * 2000))
        seen = b""
        while seen != frame:
            length = plain.receive([buffer])
            assert length == 0 or bytes(buffer[:12]) == bytes(12)
            seen = bytes(buffer[12:length])
    plain.close()


@pytest.fixture
def queues() -> Iterator[list[Tap]]:
    """Two queues of one tap."""
    ip("tuntap", "add", NAME, "mode", "tap", "multi_queue")
    opened = [open_tap(NAME, queues=2) for _ in range(2)]
    ip("link", "set", NAME, "up")  # behind the carrier that they bring, so that no frame is dropped before it
    yield opened
    for one in opened:
        one.close()
    ip("link", "delete", NAME)


def frames_to(queue: Tap) -> int:
    """The test frames in ``queue``, which are taken out."""
    buffer = memoryview(bytearray(70_000))
    count = 0
    while length := queue.receive([buffer]):
        count += buffer[24:26] == TEST_PROTOCOL and length > 0
    return count


@needs_tap
def test_only_attached_queues_get_frames(queues: list[Tap]) -> None:
    frame = BROADCAST + stable_mac("host") + TEST_PROTOCOL + bytes(46)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((NAME, 0))
        for _ in range(2):
            queues[0].detach()
            queues[0].detach()
            raw.send(frame)
            assert [frames_to(queue) for queue in queues] == [0, 1]
            queues[0].attach()
            queues[0].attach()
            queues[1].detach()
            raw.send(frame)
            assert [frames_to(queue) for queue in queues] == [1, 0]
            queues[1].attach()


@needs_tap
def test_one_queue_of_several_is_taken_over_with_its_flag(queues: list[Tap]) -> None:
    taken = inherited_tap(os.dup(queues[1].fd))
    taken.detach()
    queues[1].detach()  # it is, and that is no error
    taken.attach()
    taken.close()


@needs_tap
def test_a_tap_of_one_queue_has_no_more(tap: Tap) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tap(NAME, queues=2)
    assert f"--net tap={NAME},queues=2: is no tap of several queues; try: sudo ip tuntap" in str(caught.value)
    assert str(caught.value).endswith("multi_queue")
    tap.detach()
    tap.attach()


@needs_tap
def test_a_deleted_interface_is_found_out(queues: list[Tap]) -> None:
    queues[1].detach()
    for queue in queues:
        queue.check()
    ip("link", "delete", NAME)
    for queue in queues:
        with pytest.raises(OSError, match="bad state"):
            queue.check()
        queue.detach()
    with pytest.raises(OSError, match="Invalid argument"):
        queues[1].attach()
    ip("tuntap", "add", NAME, "mode", "tap")  # for the fixture


@needs_tap
def test_an_interface_that_is_no_tap_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a tap interface"):
        open_tap("lo")


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a b", "tap%d", "a/b", "a:b"])
def test_what_is_no_interface_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no interface name"):
        open_tap(name)


@pytest.mark.parametrize(
    ("fd", "problem"), [(9999, "not an open"), (-1, "not an open"), (1 << 40, "not an open")]
)
def test_a_descriptor_that_is_not_open_is_refused(fd: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        inherited_tap(fd)


def test_a_descriptor_of_something_else_is_refused_and_stays_open() -> None:
    with open(os.devnull) as file:
        with pytest.raises(ConfigError, match="is not a tap"):
            inherited_tap(file.fileno())
        os.fstat(file.fileno())


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, ConfigError, "belongs to another user; try: sudo ip tuntap add"),
        (errno.EBUSY, ConfigError, "in use"),
    ],
)
def test_refusals_of_the_kernel_become_one_line(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    def refuses(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tap_module, "DEVICE", os.devnull)
    monkeypatch.setattr(fcntl, "ioctl", refuses)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind, match=words):
        open_tap("lo")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_tap_that_does_not_exist_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "DEVICE", os.devnull)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="no such interface; try: sudo ip tuntap add nemu-none0 mode tap"):
        open_tap("nemu-none0")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_host_without_tun_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "DEVICE", "/nonexistent/tun")
    with pytest.raises(HostError, match="modprobe tun"):
        open_tap("tap0")


def test_offloads_follow_the_negotiated_features(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, object]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _fd, number, value: told.append((number, value)))
    tap = Tap(-1, "tap0", header=True)
    told.clear()
    csum, tso4, tso6, ecn = 1 << 1, 1 << 7, 1 << 8, 1 << 9
    for features in (0, csum, csum | tso4, csum | tso4 | tso6 | ecn, tso4 | tso6, csum | ecn):
        tap.set_features(features | F_MRG_RXBUF)
    everything = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
    assert told == [
        (TUNSETOFFLOAD, offloads)
        for offloads in (0, TUN_F_CSUM, TUN_F_CSUM | TUN_F_TSO4, everything, 0, TUN_F_CSUM)
    ]
