"""The protocol as clients meet it: greeting, negotiation, errors, ids, events, and clients that misbehave."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import pytest

from fakes.qmp import Client, FakeSession
from nemu.machine import RunState
from nemu.qmp import connection, server
from nemu.qmp.connection import OUTPUT_MAX
from nemu.qmp.descriptors import MAX_NAMED, MAX_RECEIVED
from nemu.qmp.events import EVENTS
from nemu.qmp.jsonstream import MAX_DEPTH, MAX_SIZE
from nemu.qmp.sockets import Endpoint


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


def test_it_greets_and_wants_to_negotiate_first(session: FakeSession) -> None:
    client = session.connect(negotiate=False)
    greeting = client.greeting["QMP"]
    assert greeting["capabilities"] == ["oob"]
    assert set(greeting["version"]["qemu"]) == {"major", "minor", "micro"}
    assert greeting["version"]["package"].startswith("nemu-")
    expected = ("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
    assert client.error("query-status") == expected
    assert client.error("nonsense") == expected
    assert client.error("qmp_capabilities", enable=["warp"])[1].endswith("does not accept value 'warp'")
    assert client.execute("qmp_capabilities", enable=["oob"]) == {}
    again = ("CommandNotFound", "Capabilities negotiation is already complete, command ignored")
    assert client.error("qmp_capabilities") == again
    assert client.execute("query-status") == {"running": True, "status": "running"}


# Each of these texts is QEMU's own.
@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        ("[]", "GenericError", "QMP input must be a JSON object"),
        ("nonsense", "GenericError", "JSON parse error, "),
        ('{"a": ]', "GenericError", "JSON parse error, "),
        ('{"execute":"a","execute":"b"}', "GenericError", "JSON parse error, duplicate key"),
        ("{}", "GenericError", "QMP input lacks member 'execute'"),
        ('{"execute":1}', "GenericError", "QMP input member 'execute' must be a string"),
        (
            '{"execute":"stop","arguments":[]}',
            "GenericError",
            "QMP input member 'arguments' must be an object",
        ),
        ('{"execute":"stop","x":1}', "GenericError", "QMP input member 'x' is unexpected"),
        ('{"exec-oob":"stop"}', "GenericError", "QMP input member 'exec-oob' is unexpected"),
        ('{"execute":"nope"}', "CommandNotFound", "The command nope has not been found"),
        ('{"execute":"stop","arguments":{"x":1}}', "GenericError", "Parameter 'x' is unexpected"),
        ('{"execute":"getfd","arguments":{}}', "GenericError", "Parameter 'fdname' is missing"),
    ],
)
def test_a_wrong_request_gets_its_error_and_changes_nothing(
    session: FakeSession, request_: str, kind: str, text: str
) -> None:
    client = session.connect()
    error = client.ask(request_ + "\n")["error"]
    assert error["class"] == kind
    assert error["desc"].startswith(text)
    assert (session.asked, session.machine.state) == ([], RunState.RUNNING)
    assert client.execute("query-status")["running"]


@pytest.mark.parametrize("identity", [1, "x", None, [1], {"a": [1, None]}, 0.5])
def test_ids_come_back(session: FakeSession, identity: Any) -> None:
    client = session.connect()
    assert client.ask({"execute": "query-uuid", "id": identity})["id"] == identity
    answer = client.ask({"execute": "nope", "id": identity})
    assert (answer["id"], answer["error"]["class"]) == (identity, "CommandNotFound")
    assert "id" not in client.ask({"execute": "query-uuid"})


def test_out_of_band_is_for_clients_who_asked_and_commands_that_allow_it(session: FakeSession) -> None:
    client = session.connect(negotiate=False)
    client.execute("qmp_capabilities", enable=["oob"])
    assert client.ask({"exec-oob": "query-status", "id": 1})["return"]["running"]
    refused = client.ask({"exec-oob": "system_reset", "id": 2})["error"]
    assert refused["desc"] == "The command system_reset does not support OOB"
    clash = client.ask({"exec-oob": "stop", "execute": "stop"})["error"]
    assert clash["desc"] == "QMP input member 'execute' clashes with 'exec-oob'"
    assert session.asked == []


def test_requests_may_come_in_any_pieces_and_answers_keep_their_order(session: FakeSession) -> None:
    client = session.connect()
    text = "".join(f'{{"execute":"query-name","id":{number}}}' for number in range(300))
    for start in range(0, len(text), 777):
        client.send(text[start : start + 777])
    assert [client.receive()["id"] for _ in range(300)] == list(range(300))


def test_a_mistake_in_a_handler_is_an_error_and_not_the_end(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    client = session.connect()
    del session.machine.cpus
    assert client.error("query-cpus-fast") == ("GenericError", "internal error: AttributeError")
    assert "query-cpus-fast" in capsys.readouterr().err
    assert client.execute("query-status")["running"]


# --- several clients, events ------------------------------------------------------------------


def test_events_go_to_every_client_that_has_negotiated(session: FakeSession) -> None:
    one, other, third = session.connect(), session.connect(), session.connect(negotiate=False)
    before = time.time()
    one.execute("stop")
    assert other.execute("query-status") == {"running": False, "status": "paused"}
    for client in (one, other):
        (event,) = client.events
        assert (event["event"], "data" in event) == ("STOP", False)
        stamp = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        assert before - 0.01 <= stamp <= time.time()
    third.execute("qmp_capabilities")
    assert third.events == []
    other.execute("cont")
    assert one.execute("query-status")["running"]
    assert third.execute("query-status")["running"]
    assert [event["event"] for event in (*one.events, *third.events)] == ["STOP", "RESUME", "RESUME"]


def test_events_have_their_data(session: FakeSession) -> None:
    client = session.connect()
    session.server.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
    event = client.receive()
    assert (event["event"], event["data"]) == ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})


def test_without_a_client_nothing_is_kept_for_one(session: FakeSession) -> None:
    session.server.emit("STOP", {})
    session.connect().execute("query-status")
    client = session.connect()
    client.execute("query-status")
    assert client.events == []


def test_an_event_that_a_guest_can_cause_is_limited_and_its_last_state_arrives(session: FakeSession) -> None:
    client = session.connect()
    limited = [name for name, event in EVENTS.items() if event.seconds]
    assert limited == ["WATCHDOG", "BALLOON_CHANGE"]
    for actual in range(100):
        session.server.emit("BALLOON_CHANGE", {"actual": actual})
    assert client.receive()["data"] == {"actual": 0}
    (timer,) = session.loop.timers
    assert timer.seconds == 1.0
    timer.expire()
    assert client.receive()["data"] == {"actual": 99}
    session.loop.timers[1].expire()
    session.server.emit("BALLOON_CHANGE", {"actual": 5})
    assert client.receive()["data"] == {"actual": 5}
    client.execute("query-status")
    assert client.events == []


def test_a_client_that_comes_back_finds_the_same_machine(session: FakeSession, tmp_path: Any) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "q"))
    listener.listen()
    listener.setblocking(False)
    session.server.open(Endpoint(listener))
    for _ in range(3):
        end = socket.socket(socket.AF_UNIX)
        end.connect(str(tmp_path / "q"))
        client = Client(session, end)
        assert "QMP" in client.receive()
        client.execute("qmp_capabilities")
        end.close()
        session.loop.settle()
    session.server.close()
    assert session.loop.readers == session.loop.writers == {}


# --- clients that misbehave -------------------------------------------------------------------


def test_a_client_that_never_reads_is_dropped_and_others_do_not_notice(session: FakeSession) -> None:
    deaf, good = session.connect(), session.connect()
    for count in range(OUTPUT_MAX):
        session.server.emit("STOP", {})
        if count % 100 == 0:
            good.execute("query-status")
            if len(session.server._clients) == 1:
                break
    assert deaf.dropped()
    assert good.execute("query-status")["running"]


@pytest.mark.parametrize(
    "text", ["[" * (MAX_DEPTH + 1), '{"execute":"' + "x" * MAX_SIZE], ids=["deep", "large"]
)
def test_a_request_without_an_end_is_told_and_dropped(session: FakeSession, text: str) -> None:
    client, good = session.connect(), session.connect()
    rest = text.encode()
    while rest:
        try:
            rest = rest[client.end.send(rest) :]
        except (BlockingIOError, BrokenPipeError):
            if len(session.server._clients) == 1:
                break
        session.loop.turn()
    assert client.receive()["error"]["desc"].startswith("JSON parse error, JSON value")
    assert client.dropped()
    assert good.execute("query-status")["running"]


def test_what_comes_behind_the_end_of_a_client_is_not_done(session: FakeSession) -> None:
    client = session.connect()
    client.send("[" * 200 + '{"execute":"quit"}')
    assert client.dropped()
    assert session.asked == []


def test_more_clients_than_there_is_room_for_wait_for_their_turn(
    session: FakeSession, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "q"))
    listener.listen()
    listener.setblocking(False)
    session.server.open(Endpoint(listener))
    ends = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for end in ends:
        end.connect(str(tmp_path / "q"))
    clients = [Client(session, end) for end in ends]
    session.loop.settle()
    assert [len(client.session.server._clients) for client in clients] == [2, 2, 2]
    assert clients[0].receive()
    ends[0].close()
    assert "QMP" in clients[2].receive()
    session.server.close()


def test_at_the_end_everybody_hears_of_it_and_all_is_given_back(session: FakeSession) -> None:
    before = len(os.listdir("/proc/self/fd"))
    clients = [session.connect() for _ in range(3)]
    clients[0].send("{")
    read, write = os.pipe()
    clients[1].execute("getfd", fds=[read], fdname="x")
    clients[2].execute("add-fd", fds=[write])
    session.server.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    session.server.close()
    for client in clients:
        assert client.receive()["event"] == "SHUTDOWN"
        client.end.close()
    os.close(read)
    os.close(write)
    assert session.loop.readers == session.loop.writers == {}
    assert len(os.listdir("/proc/self/fd")) == before


# --- descriptors ------------------------------------------------------------------------------


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_descriptors() -> list[tuple[int, int]]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(identity(int(name)))
        except OSError:
            pass  # the one of the listing
    return found


@pytest.fixture
def pipe() -> Any:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_descriptor_gets_a_name_and_goes_with_its_client(
    session: FakeSession, pipe: tuple[int, int]
) -> None:
    client, other = session.connect(), session.connect()
    assert client.error("getfd", fdname="x") == (
        "GenericError",
        "No file descriptor supplied via SCM_RIGHTS",
    )
    read = identity(pipe[0])
    client.execute("getfd", fds=[pipe[0]], fdname="x")
    assert open_descriptors().count(read) == 2 + 1  # the write end is the same pipe
    assert other.error("closefd", fdname="x") == ("GenericError", "File descriptor named 'x' not found")
    client.execute("getfd", fds=[pipe[0]], fdname="x")  # in the place of the first
    client.execute("getfd", fds=[pipe[0]], fdname="y")
    assert open_descriptors().count(read) == 2 + 2
    client.execute("closefd", fdname="x")
    assert open_descriptors().count(read) == 2 + 1
    client.end.close()
    session.loop.settle()
    assert open_descriptors().count(read) == 2


def test_descriptors_are_not_for_children(session: FakeSession, pipe: tuple[int, int]) -> None:
    client = session.connect()
    fd = client.execute("add-fd", fds=[pipe[0]])["fd"]
    assert not os.get_inheritable(fd)


def test_sets_are_for_all_clients_until_the_last_one_leaves(
    session: FakeSession, pipe: tuple[int, int]
) -> None:
    one, other = session.connect(), session.connect()
    added = one.execute("add-fd", fds=[pipe[0]], opaque="disk")
    assert added["fdset-id"] == 0
    assert identity(added["fd"]) == identity(pipe[0])
    second = one.execute("add-fd", fds=[pipe[1]], fdset_id=7)
    assert one.execute("add-fd", fds=[pipe[1]])["fdset-id"] == 1
    assert other.execute("query-fdsets") == [
        {"fdset-id": 0, "fds": [{"fd": added["fd"], "opaque": "disk"}]},
        {"fdset-id": 1, "fds": other.execute("query-fdsets")[1]["fds"]},
        {"fdset-id": 7, "fds": [{"fd": second["fd"]}]},
    ]
    assert other.error("remove-fd", fdset_id=3)[1] == "File descriptor named 'fdset-id:3' not found"
    assert other.error("remove-fd", fdset_id=7, fd=9999)[1].endswith("'fdset-id:7, fd:9999' not found")
    other.execute("remove-fd", fdset_id=1)
    other.execute("remove-fd", fdset_id=7, fd=second["fd"])
    assert [one["fdset-id"] for one in other.execute("query-fdsets")] == [0]
    assert one.error("add-fd", fdset_id=-1)[1] == "No file descriptor supplied via SCM_RIGHTS"
    one.end.close()
    session.loop.settle()
    assert len(other.execute("query-fdsets")) == 1
    other.end.close()
    session.loop.settle()
    assert open_descriptors().count(identity(pipe[0])) == 2
    assert session.connect().execute("query-fdsets") == []


def test_refused_descriptors_are_closed(session: FakeSession, pipe: tuple[int, int]) -> None:
    client = session.connect()
    request = {"execute": "getfd", "arguments": {"fdname": "1x"}}
    assert "not starting with a digit" in client.ask(request, fds=[pipe[0]])["error"]["desc"]
    request = {"execute": "add-fd", "arguments": {"fdset-id": -1}}
    assert "non-negative" in client.ask(request, fds=[pipe[0]])["error"]["desc"]
    assert open_descriptors().count(identity(pipe[0])) == 2


def test_descriptors_without_end_do_not_pile_up(session: FakeSession, pipe: tuple[int, int]) -> None:
    client = session.connect()
    mine = identity(pipe[0])
    for _ in range(10):
        client.ask({"execute": "query-uuid"}, fds=[pipe[0]] * MAX_RECEIVED)
    assert open_descriptors().count(mine) == 2 + MAX_RECEIVED
    for number in range(MAX_NAMED):
        client.ask({"execute": "getfd", "arguments": {"fdname": f"n{number}"}}, fds=[pipe[0]])
    error = client.ask({"execute": "getfd", "arguments": {"fdname": "more"}}, fds=[pipe[0]])["error"]
    assert "already" in error["desc"]
    for _ in range(300):
        client.ask({"execute": "add-fd"}, fds=[pipe[0]])
    assert open_descriptors().count(mine) <= 2 + 2 * 128 + MAX_RECEIVED
    client.end.close()
    session.loop.settle()
    assert open_descriptors().count(mine) == 2


def test_the_input_read_at_once_is_small() -> None:
    assert connection.CHUNK <= 4096, "what a client sends at once holds up the machine that long"
