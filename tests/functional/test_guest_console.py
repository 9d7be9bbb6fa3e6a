"""Consoles: a terminal, pipes, a file, a socket, nothing; and the serial port."""

from __future__ import annotations

import os
import re
import socket
import termios
import time
from typing import Any

from functional.guest import arguments, boot, script_text
from functional.inside import PATIENCE, Nemu
from functional.rig import Rig

SHELL = "nemu.shell"


def on_a_terminal(argv: list[str]) -> dict[str, Any]:
    """Runs inside: a shell of the guest on a pseudo-terminal; what happens there step by step."""
    with Nemu(argv, size=(40, 132)) as nemu:
        nemu.expect("# ")
        raw = termios.tcgetattr(nemu.slave)
        nemu.type("stty size\n")
        size = nemu.expect(r"\d+ \d+")
        nemu.resize(30, 100)
        nemu.type("sleep 0.5; stty size\n")
        resized = nemu.expect(r"\n\d+ \d+")
        nemu.type("sleep 1000\n")
        time.sleep(0.5)
        nemu.type("\x03echo inter''rupted\n")
        nemu.expect("interrupted")
        nemu.type("stty -icanon; echo type; head -c 1 | od -An -tx1\n")
        nemu.expect(r"\ntype")
        nemu.type("\x01\x01")
        escaped = nemu.expect(r"\n *01\b")
        nemu.type("echo $((6 * 7)) äöü\n")
        typed = nemu.expect("42 äöü")
        nemu.type("\x01h")
        nemu.expect("this help")
        nemu.type("\x01x")
        status = nemu.wait()
        return {
            "raw": not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG),
            "restored": termios.tcgetattr(nemu.slave) == nemu.attributes,
            "size": size.split()[-2:],
            "resized": resized.split()[-2:],
            "escaped": bool(escaped),
            "typed": bool(typed),
            "status": status,
            "errors": nemu.stderr(),
        }


def test_a_terminal_is_the_guests_and_the_users_again(host: Rig) -> None:
    argv = ["run", "--kernel", "/run/guest/kernel", "--initrd", "/run/guest/initrd", "--host", "native"]
    seen = host.call_here(on_a_terminal, argv=[*argv, "--append", f"{host.append} {SHELL}"])
    assert seen["raw"], "keys such as Ctrl-C must reach the guest"
    assert seen["size"] == ["40", "132"]
    assert seen["resized"] == ["30", "100"]
    assert seen["status"] == 0
    assert seen["errors"] == ""
    assert seen["restored"]


def on_a_socket(argv: list[str], path: str) -> dict[str, Any]:
    """Runs inside: two clients of a console socket, one after the other."""
    answers = []
    with Nemu([*argv, "--console", f"socket={path}"]) as nemu:
        deadline = time.monotonic() + PATIENCE
        for number in (11, 12):
            with socket.socket(socket.AF_UNIX) as client:
                while client.connect_ex(path):
                    assert time.monotonic() < deadline, nemu.stderr()
                    time.sleep(0.1)
                answers.append(converse(client, f"echo $(({number} * 3)).\n", rb"\b(\d+)\.\r", deadline))
        mode = os.stat(path).st_mode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"exit\n")
            status = nemu.wait()
        return {"answers": answers, "mode": mode, "status": status, "left": os.path.exists(path)}


def converse(client: socket.socket, line: str, pattern: bytes, deadline: float) -> str:
    """Send ``line`` until an answer comes: the guest may have no shell yet."""
    client.settimeout(2)
    seen = b""
    while not (found := re.search(pattern, seen)):
        assert time.monotonic() < deadline, seen
        client.sendall(line.encode())
        try:
            while data := client.recv(65536):
                seen += data
        except TimeoutError:
            pass
    return found[1].decode()


def test_a_socket_serves_one_client_after_another(host: Rig) -> None:
    argv = ["run", "--kernel", "/run/guest/kernel", "--initrd", "/run/guest/initrd", "--host", "native"]
    argv += ["--append", f"{host.append} {SHELL}"]
    seen = host.call_here(on_a_socket, argv=argv, path="/tmp/console.sock")
    assert seen["answers"] == ["33", "36"]
    assert seen["status"] == 0
    assert not seen["left"]


def test_a_file_takes_all_output_and_stdio_stays_silent(host: Rig) -> None:
    host.put(b"old contents", "/tmp/console.txt")
    script = script_text("seq 1 2000; echo the end")
    done = host.run_nemu(arguments(host, script, "--console", "file=/tmp/console.txt"))
    assert (done.status, done.stdout, done.stderr) == (0, b"", b"")
    text = host.get("/tmp/console.txt").replace(b"\r", b"")
    numbers = b"".join(b"%d\n" % n for n in range(1, 2001))
    assert numbers + b"the end\n" in text
    assert b"old contents" not in text


def test_input_from_a_pipe_reaches_the_guest_whole(host: Rig) -> None:
    lines = b"".join(b"line %d of many\n" % n for n in range(3000)) + b"last\n"
    script = (
        'stty -echo; while read -r l; do echo "$l"; [ "$l" = last ] && break; done >/tmp/i; md5sum /tmp/i'
    )
    argv = arguments(host, script_text(script))
    done = host.run_nemu(argv, stdin=lines)
    assert done.status == 0, done.stderr
    host.put(lines, "/tmp/lines")
    (expected,) = host.run(["md5sum", "/tmp/lines"]).stdout.split()[:1]
    assert expected in done.stdout


def test_without_a_console_the_guest_runs_all_the_same(host: Rig) -> None:
    host.run(["sh", "-c", "head -c 1048576 /dev/zero >/tmp/out.img"])
    script = script_text("echo done without a console | dd of=/dev/vda conv=fsync 2>/dev/null")
    done = host.run_nemu(arguments(host, script, "--console", "null", "--disk", "/tmp/out.img"))
    assert (done.status, done.stdout, done.stderr) == (0, b"", b"")
    assert host.get("/tmp/out.img").startswith(b"done without a console\n")


def test_the_serial_port_shows_the_earliest_messages_in_a_file(host: Rig) -> None:
    append = "earlyprintk=serial,ttyS0,115200 loglevel=4 8250.nr_uarts=1"
    options = ["--serial", "file=/tmp/serial.txt"]
    booted = boot(host, {"tty": "grep -E 'uart:1|16550' /proc/tty/driver/serial"}, *options, append=append)
    assert booted.status == 0, booted.stderr
    assert re.match(r"0: uart:16550A port:000003F8 irq:\d+", booted["tty"])
    text = host.get("/tmp/serial.txt")
    assert b"PCI: Fatal: No config space access function found" in text
    assert any(key.startswith("serial") for key in booted.report["exits"]["by_register"])


def on_a_serial_console(argv: list[str]) -> dict[str, Any]:
    """Runs inside: a question of the guest on its serial port, and the answer."""
    with Nemu(argv) as nemu:
        nemu.expect("who is there")
        nemu.type("by wire\n")
        nemu.expect("got by wire")
        return {"status": nemu.wait(), "errors": nemu.stderr()}


def test_a_serial_console_on_stdio_works_both_ways(host: Rig) -> None:
    argv = arguments(host, script_text('echo who is there; read -r line; echo "got $line"'))
    argv[argv.index("--append") + 1] = "quiet loglevel=3 mitigations=off console=ttyS0 nemu.run=/t"
    argv += ["--serial", "stdio", "--console", "null"]
    assert host.call_here(on_a_serial_console, argv=argv) == {"status": 0, "errors": ""}


# Runs in the guest: answers a client on the port "talk", sees it leave and the next one come, and logs.
_AGENT = """
cd /sys/class/virtio-ports
for port in */name; do read -r name <$port; ln -s ${port%/name} /dev/$name; done
echo logged >/dev/log
exec 3<>/dev/talk
for client in 1 2; do
    until read -r line <&3; do sleep 0.1; done
    echo "$client heard $line" >&3
    while read -r line <&3; do echo "more: $line"; done
    echo "client $client left"
done
"""


def two_clients_of_a_port(argv: list[str], path: str, log: str) -> dict[str, Any]:
    """Runs inside: what two clients of a named port hear, one after the other, and what the guest saw."""
    heard, shown = [], ""
    with Nemu([*argv, "--port", f"name=talk,socket={path}", "--port", f"name=log,file={log}"]) as nemu:
        for number in (1, 2):
            with socket.socket(socket.AF_UNIX) as client:
                while client.connect_ex(path):
                    time.sleep(0.1)
                client.settimeout(PATIENCE)
                client.sendall(b"client %d\nbye\n" % number)
                heard.append(client.makefile().readline())
            # Linux knows only whether somebody is there now: the next one must not come at once.
            shown += nemu.expect(f"client {number} left")
        status = nemu.wait()
        with open(log) as file:
            return {"heard": heard, "status": status, "shown": shown, "logged": file.read()}


def test_a_named_port_connects_programs_and_tells_of_their_leaving(host: Rig) -> None:
    argv = arguments(host, script_text({"agent": _AGENT}))
    seen = host.call_here(two_clients_of_a_port, argv=argv, path="/tmp/talk", log="/tmp/port.log")
    assert seen["status"] == 0
    assert seen["heard"] == ["1 heard client 1\n", "2 heard client 2\n"]
    assert re.findall(r".*(?:more|left).*", seen["shown"]) == [
        "more: bye",
        "client 1 left",
        "more: bye",
        "client 2 left",
    ]
    assert seen["logged"] == "logged\n"
