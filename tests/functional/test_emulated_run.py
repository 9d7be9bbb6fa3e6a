"""``nemu run --host emulated`` behaves as a native run: streams, terminal, signals, status, disks, report."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from functional.guest import compiled
from nemu.host import cpio, guest

COMMAND = [sys.executable, "-m", "nemu", "run", "--host", "emulated"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
SHORT = 60.0  # seconds: how long one boot may take where others compute too


def run(*options: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *options], input=stdin, env=ENVIRONMENT, capture_output=True, timeout=SHORT, check=False
    )


def in_guest(command: str) -> list[str]:
    return ["--append", guest.run_option(command)]


@contextmanager
def start(*options: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*COMMAND, *options], env=ENVIRONMENT, stdin=stdin, stdout=pipe, stderr=pipe
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def state(pid: int) -> list[str]:
    """The state, the parent and what follows in /proc/PID/stat; a zombie without parent when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ["Z", ""]
    return text.rpartition(")")[2].split()


def children(pid: int) -> list[int]:
    """The processes that have ``pid`` as parent."""
    processes = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [process for process in processes if state(process)[1] == str(pid)]


def is_gone(pid: int) -> bool:
    return state(pid)[0] == "Z"


def wait_for(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Read standard output of ``process`` until ``text`` has come."""
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + SHORT
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([process.stdout], [], [], 1)[0]:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, f"ended after {seen!r}: {process.stderr.read() if process.stderr else b''!r}"
            seen += data


class Terminal:
    """A process on a pseudo-terminal of its own, and what it has shown."""

    def __init__(self, argv: Sequence[str], rows: int, columns: int) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], list(argv), ENVIRONMENT)
        self.shown = b""
        self.resize(rows, columns)
        self.attributes = termios.tcgetattr(self.fd)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, columns, 0, 0))

    def expect(self, pattern: bytes) -> None:
        deadline = time.monotonic() + SHORT
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.fd, 4096)
                except OSError:
                    pytest.fail(f"ended: {self.shown!r}")
        self.shown = b""

    def wait(self) -> int:
        """Its exit status, reading what it still shows."""
        deadline = time.monotonic() + SHORT
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    time.sleep(0.05)


def test_disks_report_and_status_are_the_users(tmp_path: Path) -> None:
    writable, readonly, report = tmp_path / "w.img", tmp_path / "r.img", tmp_path / "report.json"
    writable.write_bytes(bytes(1 << 20))
    readonly.write_bytes(b"precious".ljust(4096, b"."))
    command = (
        "head -c 8 /dev/vdb; echo; echo fresh >/dev/vda; sync; "
        "echo gone >/dev/vdb || echo refused; nproc; false"
    )
    disks = ["--disk", str(writable), "--disk", f"{readonly},readonly=on"]
    done = run(*disks, "--cpus", "2", "--report", str(report), *in_guest(command))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace(b"\r", b"").splitlines()
    assert lines[0] == b"precious"
    assert lines[-3:] == [b"refused", b"2", b"nemu.status 1"]
    assert writable.read_bytes().startswith(b"fresh\n")
    assert readonly.read_bytes() == b"precious".ljust(4096, b".")
    written = json.loads(report.read_text())
    assert written["outcome"] == "power_off"
    assert written["exits"]["total"] > 0


def test_a_panic_is_status_3_and_the_console_file_tells_why(tmp_path: Path) -> None:
    console = tmp_path / "console.txt"
    done = run("--console", f"file={console}", *in_guest("echo c >/proc/sysrq-trigger"))
    assert done.returncode == 3
    assert b"Kernel panic" in console.read_bytes()
    assert done.stdout == b""


def test_the_time_limit_is_status_4() -> None:
    begin = time.monotonic()
    assert run("--timeout", "5", *in_guest("sleep 1000")).returncode == 4
    assert time.monotonic() - begin < 30


def test_typed_input_reaches_the_guest_through_a_pipe() -> None:
    with start(*in_guest("echo ready; read -r line; echo got $line"), stdin=subprocess.PIPE) as process:
        wait_for(process, b"ready")  # Linux drops what comes before its console is set up
        assert b"got something" in process.communicate(b"something\n", timeout=SHORT)[0]


def test_a_terminal_keeps_its_size_and_its_mode() -> None:
    terminal = Terminal([*COMMAND, "--append", "nemu.shell"], 40, 132)
    terminal.expect(rb"# ")
    terminal.resize(30, 100)
    os.write(terminal.fd, b"sleep 1; stty size\n")
    terminal.expect(rb"30 100")
    os.write(terminal.fd, b"sleep 1000\n")
    time.sleep(0.5)
    os.write(terminal.fd, b"\x03echo inter''rupted\n")
    terminal.expect(rb"interrupted")
    os.write(terminal.fd, b"\x01x")
    assert terminal.wait() == 0
    assert termios.tcgetattr(terminal.fd) == terminal.attributes
    os.close(terminal.fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_presses_the_power_button(number: int) -> None:
    with start(*in_guest("echo ready; sleep 1000")) as process:
        wait_for(process, b"ready")
        (qemu,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(SHORT) == 0
        assert is_gone(qemu)


def test_a_guest_that_ignores_the_power_button_ends_at_the_second_signal() -> None:
    with start(*in_guest("kill $(cat /run/acpid.pid); echo ready; sleep 1000")) as process:
        wait_for(process, b"ready")
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(SHORT) == 128 + signal.SIGTERM


def test_nothing_survives_the_sudden_death_of_nemu() -> None:
    with start(*in_guest("echo ready; sleep 1000")) as process:
        wait_for(process, b"ready")
        (qemu,) = children(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while not is_gone(qemu):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_console_is_a_socket_for_one_client_after_another(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with start(
        "--console", f"socket={path}", *in_guest("while read -r l; do echo reply $l; done")
    ) as process:
        deadline = time.monotonic() + SHORT
        for word in (b"first", b"second"):
            with socket.socket(socket.AF_UNIX) as client:
                while client.connect_ex(str(path)):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                client.settimeout(1)
                seen = b""
                while b"reply " + word not in seen:
                    assert time.monotonic() < deadline, seen
                    try:
                        seen += client.recv(4096)
                    except TimeoutError:  # only in silence: a slow guest would drown in its own echo
                        client.sendall(word + b"\n")
        process.terminate()
        assert process.wait(SHORT) == 0
        assert not path.exists()


def with_program(folder: Path, command: str) -> list[str]:
    """Options for the small guest with the test's own program /vsock in it, which runs ``command``."""
    small = guest.ensure()
    extra = cpio.Archive()
    extra.file("vsock", compiled("vsock.c"), 0o755)
    content = Path(small.initrd).read_bytes()
    initrd = folder / "initrd"
    initrd.write_bytes(content + bytes(-len(content) % 4) + extra.to_bytes())
    append = f"{small.append} {guest.run_option(command)}"
    return ["--kernel", small.kernel, "--initrd", str(initrd), "--append", append]


def test_clients_of_a_socket_device_reach_the_guest(tmp_path: Path) -> None:
    path, data = tmp_path / "vsock", random.Random(3).randbytes(300_000)
    command = "modprobe vmw_vsock_virtio_transport; /vsock echo 1234 9 & sleep 1; echo ready; read -r line"
    with start("--vsock", f"cid=9,socket={path}", *with_program(tmp_path, command)) as process:
        wait_for(process, b"ready")
        for request in (b"CONNECT 77\n", b"nonsense\n"):  # nobody listens; no request at all
            assert exchange(path, request, b"") == b""
        for part in (data, b"small", b""):
            answer = exchange(path, b"CONNECT 1234\n", part)
            ok, _, echo = answer.partition(b"\n")
            assert ok.startswith(b"OK ")
            assert echo == part
        process.terminate()
        assert process.wait(SHORT) == 0
        assert os.listdir(tmp_path) == ["initrd"]


def exchange(path: Path, request: bytes, data: bytes) -> bytes:
    """Everything that comes back for ``request``, ``data`` and their end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SHORT)
        client.connect(str(path))
        sender = threading.Thread(target=send, args=(client, request + data))
        sender.start()
        back = b""
        while part := client.recv(1 << 16):
            back += part
        sender.join()
        return back


def send(client: socket.socket, data: bytes) -> None:
    with suppress(BrokenPipeError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    with start(*in_guest("echo one")) as first, start(*in_guest("echo two")) as second:
        assert b"one" in first.communicate(timeout=SHORT)[0]
        assert b"two" in second.communicate(timeout=SHORT)[0]
        assert (first.returncode, second.returncode) == (0, 0)


def test_a_disk_in_use_is_refused_as_natively(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with image.open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        done = run("--disk", str(image))
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert str(image) in done.stderr.decode()


def qcow2(data: bytes) -> bytes:
    """A qcow2 image (QEMU, docs/interop/qcow2.txt, version 2) of whole clusters of 64 KiB with ``data``."""
    cluster = 1 << 16
    count = len(data) // cluster
    header, table, refcounts, level1, level2 = (number * cluster for number in range(5))
    first = 5 * cluster
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, len(data), 0, 1, level1, table, 1, 0, header
    )
    copied = 1 << 63
    parts = [
        head,
        struct.pack(">Q", refcounts),
        struct.pack(">H", 1) * (5 + count),
        struct.pack(">Q", level2 | copied),
        b"".join(struct.pack(">Q", (first + number * cluster) | copied) for number in range(count)),
    ]
    return b"".join(part.ljust(cluster, b"\0") for part in parts) + data


def test_a_qcow2_image_is_a_disk_like_any_other(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    data = os.urandom(1 << 18)
    image.write_bytes(qcow2(data))
    command = "sha256sum </dev/vda; echo written | dd of=/dev/vda bs=64k seek=1 conv=fsync,notrunc"
    done = run("--disk", str(image), *in_guest(command))
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(data).hexdigest().encode() in done.stdout
    assert image.read_bytes()[6 << 16 :].startswith(b"written\n")
    image.write_bytes(b"QFI\xfb\0\0\0\x09" + bytes(4096))
    done = run("--disk", str(image))
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert f"nemu: --disk {image}: " in done.stderr.decode()
    assert "Unsupported qcow2 version 9" in done.stderr.decode()


@pytest.mark.parametrize(
    "options", [("--disk", "vhost-user="), ("--net", "vhost-user="), ("--vhost-user", "type=2,socket=")]
)
def test_a_back_end_of_this_host_is_refused_in_one_line(tmp_path: Path, options: tuple[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        done = run(options[0], f"{options[1]}{tmp_path}/s")
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "the emulated host cannot reach it" in done.stderr.decode()


def test_a_tap_is_refused_in_one_line() -> None:
    done = run("--net", "tap=tap0")
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "--net tap=tap0" in done.stderr.decode()


def test_a_port_of_this_host_leads_to_the_guests_of_the_emulated_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = "ip link set eth0 up; udhcpc -i eth0 -q -n -t 5 >/dev/null; nc -l -p 80 -e cat"
    with start("--net", f"user,forward=tcp:127.0.0.1:{port}:80", *in_guest(serve)) as process:
        deadline = time.monotonic() + 2 * SHORT
        answer = b""
        while not answer:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:  # each host on the way takes a connection before it knows whether the next one does
                with socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.sendall(b"from outside")
                    answer = client.recv(100)
            except OSError:
                time.sleep(0.2)
        assert answer == b"from outside"
        assert process.wait(SHORT) == 0


def test_what_the_emulated_host_cannot_forward_is_refused() -> None:
    done = run("--net", "user,forward=tcp:[::1]:18099:80", *in_guest("true"))
    assert done.returncode == 2
    problem = "the emulated host forwards IPv4 addresses only"
    assert done.stderr.decode() == f"nemu: --net user,forward=tcp:[::1]:18099:80: {problem}\n"


def run_command(place: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *words],
        input=b"typed\0\xff",
        env=ENVIRONMENT,
        cwd=place,
        capture_output=True,
        timeout=2 * SHORT,
        check=False,
    )


def test_a_command_sees_this_machines_files_and_leaves_them_as_they_are(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "in").write_bytes(data)
    done = run_command(tmp_path, "--", "sh", "-c", "cat in; cat >new; echo gone >in; pwd >&2; exit 9")
    assert (done.returncode, done.stdout) == (9, data), done.stderr
    said = done.stderr.decode().removeprefix("nemu: building the emulated host (first use)\n")
    assert said == f"{tmp_path}\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"in": data}


def test_a_command_that_may_write_does(tmp_path: Path) -> None:
    done = run_command(tmp_path, "--rw", "--", "sh", "-c", "cat >new && ln -s new link")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").read_bytes() == b"typed\0\xff"
