"""One run of ``nemu run`` on this host: backends that stay, machines that come and go.

The backends (disks, taps, the terminal) and the sockets of management are opened once.  Each machine is built
on them, runs until its guest powers off or resets, and is taken apart; after a reset the next one is built.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from nemu import rundir
from nemu.build import build
from nemu.errors import GuestCrashError, HostError, NemuError
from nemu.kvm.vcpu import KICK_SIGNAL
from nemu.loop import Loop
from nemu.machine import Machine, Outcome, RunState
from nemu.management import Management
from nemu.peripherals import Peripherals
from nemu.plug.inventory import Inventory
from nemu.report import Report

if TYPE_CHECKING:
    from nemu.config import MachineConfig, RunOptions
    from nemu.peripherals.command import Command

STATUS = {
    Outcome.POWER_OFF: 0,
    Outcome.QUIT: 0,
    Outcome.PANIC: GuestCrashError.status,
    Outcome.WATCHDOG: GuestCrashError.status,
    Outcome.TIMEOUT: 4,
    Outcome.KILLED: 128 + signal.SIGTERM,
    Outcome.QMP_QUIT: 0,
}
_PATIENCE = 2  # signals that a command may take as it likes
# Of QMP's events RESET and SHUTDOWN: whether it was the guest's doing, and the reason.
_CAUSES = {
    Outcome.POWER_OFF: (True, "guest-shutdown"),
    Outcome.RESET: (True, "guest-reset"),
    Outcome.PANIC: (True, "guest-panic"),
    Outcome.WATCHDOG: (True, "guest-shutdown"),
    Outcome.TIMEOUT: (False, "host-signal"),
    Outcome.QUIT: (False, "host-ui"),
    Outcome.KILLED: (False, "host-signal"),
    Outcome.QMP_QUIT: (False, "host-qmp-quit"),
    Outcome.QMP_RESET: (False, "host-qmp-system-reset"),
}
_RESETS = {Outcome.RESET, Outcome.QMP_RESET}
# Outcomes that nobody asked for: one line on standard error says what happened.
_UNEXPECTED = {Outcome.PANIC, Outcome.WATCHDOG, Outcome.TIMEOUT}
# Outcomes after which nobody misses a console.
_QUIET = {Outcome.POWER_OFF, Outcome.QMP_QUIT}


# Early messages of a kernel whose console driver is a module appear nowhere else.
_NO_CONSOLE = (
    "nemu: the guest never opened its console; to see its first messages add "
    "--serial stdio --console null --append 'console=ttyS0 earlyprintk=serial'"
)
_PANIC_PREFIX = "Kernel panic - not syncing: "


def _panic_message(log: list[str]) -> str:
    """ ": why" out of the log of a Linux kernel that panicked, "" where it does not say."""
    for line in reversed(log):
        _, found, why = line.partition(_PANIC_PREFIX)
        if found:
            return f": {why}"
    return ""


class Session:
    """Signals, time-out, management clients and reboots around the machines of one run.

    ``name`` is what management calls it; ``peripherals`` and ``inventory`` are there while it runs.
    """

    peripherals: Peripherals
    inventory: Inventory

    def __init__(self, config: MachineConfig, options: RunOptions) -> None:
        self.config = config
        self.name = rundir.name_of(options)
        self._options = options
        self._lock = threading.RLock()
        self.loop = Loop(self._lock)
        self._machine: Machine | None = None
        self._asked = 0  # signals that asked for the end, and which one was the last
        self._last_signal = 0
        self._paused = options.start == "paused"
        self._management = Management(self, options)
        self._report = Report()
        self._last_words: list[str] = []
        self._console_opened = False
        self._command: Command | None = None

    def run(self) -> int:
        outcome = None
        try:
            outcome = self._run()
        finally:
            self.loop.close()
            if self._options.report:
                self._report.write(self._options.report, outcome)
        self._explain(outcome)
        return self._status_of_command(self._command, outcome) if self._command else STATUS[outcome]

    def _status_of_command(self, command: Command, outcome: Outcome) -> int:
        """Its exit status, or what a shell would make of its end."""
        if command.status is not None:
            return command.status
        if outcome in _UNEXPECTED or outcome is Outcome.QMP_QUIT:
            return STATUS[outcome]
        if self._last_signal:
            return 128 + self._last_signal
        raise HostError(command.problem)

    def _explain(self, outcome: Outcome) -> None:
        """Say what nobody asked for, and what the guest itself could not say."""
        silent = not self._console_opened
        for line in self._last_words if silent else ():
            print(line, file=sys.stderr)
        if outcome in _UNEXPECTED:
            print(f"nemu: {outcome.value}{_panic_message(self._last_words)}", file=sys.stderr)
        if silent and not self._last_words and outcome not in _QUIET:
            print(_NO_CONSOLE, file=sys.stderr)

    def _run(self) -> Outcome:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.loop.on_signal(number, partial(self._on_terminate, number))
        self.loop.on_signal(KICK_SIGNAL, lambda: None)
        with ExitStack() as stack:
            stack.callback(self._management.close)
            self._management.open()
            emit = self._management.emit
            self.peripherals = Peripherals(self.config, self.loop, self.leave, emit)
            self._command = self.peripherals.command
            stack.callback(self.peripherals.close)
            self.inventory = Inventory(self.config, self.peripherals, self.loop, emit)
            stack.callback(self.inventory.close)
            if self._options.timeout:
                self.loop.call_later(self._options.timeout, lambda: self._finish(Outcome.TIMEOUT))
            outcome = Outcome.RESET
            while outcome in _RESETS:
                outcome = self._run_machine(self.peripherals)
                if self._command:  # which must not run twice
                    break
            return outcome

    def _run_machine(self, peripherals: Peripherals) -> Outcome:
        """One machine from power-on to its end."""
        machine = self._machine = build(self.config, self.inventory, self._lock, self.loop)
        machine.emit = self._management.emit
        try:
            peripherals.ready()
            outcome = machine.run(paused=self._paused)
            self._tell_end(outcome)
            return outcome
        except NemuError as error:
            crashed = isinstance(error, GuestCrashError)
            self._management.emit(
                "SHUTDOWN", guest=crashed, reason="guest-panic" if crashed else "host-error"
            )
            raise
        finally:
            self._paused = machine.state is not RunState.RUNNING
            self._report.add(machine)
            self._last_words = machine.last_words
            self._console_opened |= peripherals.console_opened or self.config.console.kind == "null"
            self._machine = None
            machine.close()
            peripherals.drain()
            self.inventory.leave()
            del machine
            gc.collect()  # views of guest RAM in reference cycles would keep it mapped

    # --- what management asks for, in the loop -----------------------------------------------

    @property
    def machine(self) -> Machine:
        """The machine of now."""
        assert self._machine is not None
        return self._machine

    def pause(self) -> None:
        """Hold the CPUs and the guest's clocks."""
        if self.machine.pause():
            self._management.emit("STOP")

    def resume(self) -> None:
        """Let the CPUs go on."""
        if self.machine.resume():
            self._management.emit("RESUME")

    def reset(self) -> None:
        """Build the machine anew; one whose CPUs are held stays so."""
        self._finish(Outcome.QMP_RESET)

    def power_down(self) -> None:
        """Press the power button."""
        self._management.emit("POWERDOWN")
        self.machine.power_button()

    def quit(self) -> None:
        """End the run."""
        self._finish(Outcome.QMP_QUIT)

    def leave(self) -> None:
        """The user typed Ctrl-A X."""
        self._last_signal = signal.SIGINT
        self._finish(Outcome.QUIT)

    def _tell_end(self, outcome: Outcome) -> None:
        """The events of the end of a machine."""
        if outcome is Outcome.PANIC:
            self._management.emit("GUEST_PANICKED", action="poweroff")
        guest, reason = _CAUSES[outcome]
        self._management.emit("RESET" if outcome in _RESETS else "SHUTDOWN", guest=guest, reason=reason)

    def _on_terminate(self, number: int) -> None:
        """Pass the signal on to the command, or ask the guest to power off; not for ever."""
        self._last_signal = number
        self._asked += 1
        if self._command:
            if self._asked > _PATIENCE or not self._command.signal(number):
                self._finish(Outcome.KILLED)
        elif self._asked > 1 or self._machine is None:
            self._finish(Outcome.KILLED)
        else:
            self.power_down()

    def _finish(self, outcome: Outcome) -> None:
        if self._machine is not None:
            self._machine.finish(outcome)


def run(config: MachineConfig, options: RunOptions) -> int:
    """Run ``config`` on this host's KVM; gives the exit status of the process."""
    return Session(config, options).run()
