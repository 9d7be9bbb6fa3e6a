"""The emulated host itself: programs, functions, files, disks, clones."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from functional.rig import Rig
from nemu.errors import HostError
from nemu.host.emulated import CallError, Host, erofs, wire
from nemu.host.emulated.client import JobError


def _describe_inside(number: int) -> dict[str, Any]:
    """Runs inside: what the function sees of its surroundings."""
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as file:
        uuid = file.read().strip()
    return {"double": number * 2, "uuid": uuid, "time": time.time(), "kvm": os.path.exists("/dev/kvm")}


def _fail_inside() -> None:
    raise ValueError("on purpose")


def _print_inside() -> None:
    print("printed by a function")


def test_a_program_has_its_streams_environment_directory_and_exit_status(host: Rig) -> None:
    script = 'cat; echo "$NAME in $PWD" >&2; exit 42'
    result = host.run(["sh", "-c", script], stdin=b"typed", env={"NAME": "somebody"}, cwd="/tmp")
    assert result == (42, b"typed", b"somebody in /tmp\n")


def test_a_missing_program_is_told_on_stderr_with_status_127(host: Rig) -> None:
    result = host.run(["no-such-program"])
    assert result.status == 127
    assert result.stderr == b"no-such-program: No such file or directory\n"


def test_a_program_ended_by_a_signal_has_the_status_that_a_shell_gives_it(host: Rig) -> None:
    assert host.run(["sh", "-c", "kill -TERM $$"]).status == 128 + signal.SIGTERM


def test_megabytes_pass_through_a_program_unchanged(host: Rig) -> None:
    data = random.Random(1).randbytes(3_000_001)
    assert host.run(["cat"], stdin=data).stdout == data


def test_a_program_that_does_not_end_is_killed_with_its_children(host: Rig) -> None:
    with pytest.raises(TimeoutError, match="beginning"):
        host.run(["sh", "-c", "echo beginning; sleep 4711 & sleep 4711"], timeout=1)
    assert host.run(["pgrep", "-f", "sleep 4711"]).stdout == b""


def test_a_program_on_a_terminal_sees_its_size_and_controls_it(host: Rig) -> None:
    request = {
        "what": "spawn",
        "argv": ["sh", "-c", "tty; stty size; echo ok >/dev/tty"],
        "terminal": {"streams": [0, 1], "size": [40, 132]},
    }
    job = host.client.start(request, {}, {1: wire.Sink(), 2: wire.Sink()})
    assert job.wait(20) == 0
    assert bytes(job.sink(1)) == b"/dev/pts/0\n40 132\nok\n"


def test_output_that_nobody_reads_holds_up_nothing_else(host: Rig) -> None:
    flood = host.start(["sh", "-c", "yes"])
    try:
        assert host.run(["echo", "still here"]).stdout == b"still here\n"
    finally:
        flood.signal(signal.SIGKILL)
        assert flood.wait(10) == 128 + signal.SIGKILL


def test_a_function_of_a_test_module_runs_inside_with_kvm(host: Rig) -> None:
    found = host.call_here(_describe_inside, number=21)
    assert found["double"] == 42
    assert found["kvm"]
    assert abs(found["time"] - time.time()) < 5


def test_a_function_that_raises_brings_its_traceback(host: Rig) -> None:
    with pytest.raises(CallError, match=r"(?s)_fail_inside.*ValueError: on purpose"):
        host.call_here(_fail_inside)


def test_what_a_function_prints_does_not_disturb_its_result(host: Rig) -> None:
    assert host.call_here(_print_inside) is None


def test_files_go_in_and_come_out_unchanged(host: Rig, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2_000_003)
    (tmp_path / "file").write_bytes(data)
    host.put(str(tmp_path / "file"), "/tmp/deep/down/file")
    assert host.get("/tmp/deep/down/file") == data
    host.put(b"", "/tmp/empty")
    assert host.get("/tmp/empty") == b""


def test_a_file_that_is_not_there_cannot_be_had(host: Rig) -> None:
    with pytest.raises(JobError, match="No such file"):
        host.get("/no/such/file")


def test_writes_to_an_attached_disk_are_in_the_file_after_a_flush(host: Rig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(7 * 512))
    device = host.attach(str(image))
    assert host.run(["blockdev", "--getsize64", device]).stdout == b"3584\n"
    command = f"printf written | dd of={device} bs=512 seek=6 conv=notrunc,fsync 2>/dev/null"
    assert host.run(["sh", "-c", command]).status == 0
    assert image.read_bytes() == bytes(6 * 512) + b"written" + bytes(505)


def test_a_disk_attached_read_only_refuses_writes(host: Rig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"original".ljust(512, b"."))
    device = host.attach(str(image), readonly=True)
    result = host.run(["sh", "-c", f"head -c 8 {device}; echo changed | dd of={device} conv=fsync"])
    assert result.stdout == b"original"
    assert result.status != 0
    assert image.read_bytes().startswith(b"original")


def test_a_disk_that_another_emulated_host_writes_is_refused(host: Rig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512))
    host.attach(str(image))
    with Host() as other, pytest.raises(HostError, match="lock"):
        other.attach(str(image))


def test_clones_run_side_by_side_and_share_no_random_numbers(host: Rig) -> None:
    with Rig() as other:
        first, second = (
            host.call_here(_describe_inside, number=1),
            other.call_here(_describe_inside, number=1),
        )
    assert first["uuid"] != second["uuid"]


def test_the_network_reaches_the_gateway(host: Rig) -> None:
    assert host.run(["ping", "-c", "1", "-W", "5", "10.0.2.2"]).status == 0


def test_the_kernel_reads_our_disk_images_as_they_were_written(host: Rig, tmp_path: Path) -> None:
    image, expected = erofs.Image(), {}
    source = random.Random(3)
    for number, size in enumerate([0, 1, 4095, 4096, 4097, 100_000, *[10] * 600]):
        name = f"d{number % 7}/{'long' * (number % 50)}{number}"
        expected[name] = source.randbytes(size)
        image.bytes(name, expected[name])
    image.symlink("link", "d0/0")
    target = tmp_path / "image"
    with target.open("wb") as file:
        image.write(file.fileno())
    device = host.attach(str(target), readonly=True)
    mount = f"mkdir -p /mnt/t && mount -t erofs -o ro {device} /mnt/t"
    listing = host.run(
        ["sh", "-c", f"{mount} && cd /mnt/t && find . -type f | xargs sha256sum"]
    ).stdout.decode()
    found = {line.split()[1].removeprefix("./"): line.split()[0] for line in listing.splitlines()}
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
    assert host.run(["readlink", "/mnt/t/link"]).stdout == b"d0/0\n"


def test_nothing_runs_and_no_descriptor_is_open_after_it_is_closed() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Host() as other:
        pid = other._qemu.process.pid
        assert os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(f"/proc/{pid}")
    assert set(os.listdir("/proc/self/fd")) == before


def test_it_answers_within_a_second() -> None:
    start = time.monotonic()
    with Host() as other:
        assert other.run(["true"]).status == 0
        assert time.monotonic() - start < 2  # 0.4 s on two idle cores; 2 s where others compute
