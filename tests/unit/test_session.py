"""What a user is told about the end of a run."""

from __future__ import annotations

import pytest

from nemu.config import MachineConfig, RunOptions
from nemu.config.chardev import ChardevConfig
from nemu.machine import Outcome
from nemu.session import STATUS, Session

LOG = ["[ 1.0] hello", "[ 2.0] Kernel panic - not syncing: no root", "[ 2.1] Call Trace:"]


def told(
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome,
    *,
    log: list[str] | None = None,
    opened: bool = True,
) -> str:
    session = Session(MachineConfig(console=ChardevConfig("null")), RunOptions())
    session._last_words = log or []
    session._console_opened = opened
    session._explain(outcome)
    session.loop.close()
    return capsys.readouterr().err


def test_a_power_off_needs_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    for outcome in (Outcome.POWER_OFF, Outcome.QMP_QUIT):
        assert told(capsys, outcome) == told(capsys, outcome, opened=False) == ""


def test_a_panic_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, Outcome.PANIC, log=LOG) == "nemu: the guest panicked: no root\n"
    assert told(capsys, Outcome.PANIC) == "nemu: the guest panicked\n"


def test_a_panic_before_there_is_a_console_shows_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, Outcome.PANIC, log=LOG, opened=False).splitlines()[:3] == LOG


def test_a_guest_that_never_showed_anything_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--serial stdio" in told(capsys, Outcome.TIMEOUT, opened=False)
    assert "--serial stdio" not in told(capsys, Outcome.TIMEOUT)


def test_every_end_but_a_reset_has_a_status() -> None:
    assert set(STATUS) == set(Outcome) - {Outcome.RESET, Outcome.QMP_RESET}
    assert STATUS[Outcome.POWER_OFF] == 0
    assert STATUS[Outcome.PANIC] == 3
    assert STATUS[Outcome.TIMEOUT] == 4
