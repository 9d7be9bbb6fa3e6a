"""One thread a vCPU: in KVM_RUN without the interpreter lock, out of it only for an exit."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from nemu.errors import GuestCrashError
from nemu.kvm import abi

if TYPE_CHECKING:
    from nemu.bus.address_space import AddressSpace
    from nemu.kvm.handles import Vcpu

# Interrupts KVM_RUN; its handler does nothing.
KICK_SIGNAL = signal.SIGUSR1

_EXIT_NAMES = {
    abi.KVM_EXIT_IO: "io",
    abi.KVM_EXIT_MMIO: "mmio",
    abi.KVM_EXIT_HLT: "hlt",
    abi.KVM_EXIT_SHUTDOWN: "shutdown",
    abi.KVM_EXIT_FAIL_ENTRY: "fail_entry",
    abi.KVM_EXIT_INTR: "intr",
    abi.KVM_EXIT_IRQ_WINDOW_OPEN: "irq_window_open",
    abi.KVM_EXIT_INTERNAL_ERROR: "internal_error",
    abi.KVM_EXIT_SYSTEM_EVENT: "system_event",
}


class VcpuThread(threading.Thread):
    """Runs ``vcpu`` until ``stop``.

    ``failed`` gets whatever ends the thread early, in this thread.  ``exits`` counts the
    returns to userspace by kind; ``first_run`` is time.monotonic() before the first KVM_RUN.

    Paused, it is outside the guest and makes no access, not even one that the guest has begun.
    """

    def __init__(
        self,
        index: int,
        vcpu: Vcpu,
        *,
        memory_bus: AddressSpace,
        port_bus: AddressSpace,
        lock: threading.RLock,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name=f"vcpu{index}", daemon=True)
        self._vcpu = vcpu
        self._memory_bus = memory_bus
        self._port_bus = port_bus
        self._lock = lock
        self._failed = failed
        self._stopping = False
        self._may_run = threading.Event()
        self._may_run.set()
        self._inside = False  # in KVM_RUN, or just before or behind it
        self._left = threading.Event()  # it came out of KVM_RUN and is not to go back
        # A thread that has ended must not be signalled: its handle may be another's by then.
        self._kick_lock = threading.Lock()
        self._kickable = False
        self.exits: Counter[str] = Counter()
        self.first_run = 0.0
        self.ended: Callable[[], None] = lambda: None  # called last of all, in this thread

    def stop(self) -> None:
        """Ask the thread to end; it does so after the exit at hand.  From any thread."""
        with self._kick_lock:
            self._stopping = True
            self._kick()
            self._may_run.set()

    def pause(self) -> None:
        """Call it out of the guest until ``resume``.  With the machine lock held."""
        with self._kick_lock:
            if not self._stopping:
                self._may_run.clear()
                self._left.clear()
                self._kick()

    def wait_paused(self) -> None:
        """Return when it is outside the guest, after ``pause`` or ``stop``."""
        if self._inside:
            self._left.wait()

    def resume(self) -> None:
        """Let it go on.  With the machine lock held."""
        with self._kick_lock:
            if not self._stopping:
                self._vcpu.run.immediate_exit = 0
                self._may_run.set()

    def _kick(self) -> None:
        # Before the signal: if that comes just before KVM_RUN is entered, this flag still ends it.
        self._vcpu.run.immediate_exit = 1
        if self._kickable and self.ident is not None:
            signal.pthread_kill(self.ident, KICK_SIGNAL)

    def run(self) -> None:
        self._kickable = True
        try:
            self._may_run.wait()
            self.first_run = time.monotonic()
            while not self._stopping:
                if self._enter():
                    self._handle(self._vcpu.run.exit_reason)
        except BaseException as error:  # whatever it is, the main thread has to hear of it
            self._failed(error)
        finally:
            with self._kick_lock:
                self._kickable = False
            self.ended()

    def _enter(self) -> bool:
        """Run the guest until the next exit; False where there is none to handle."""
        self._may_run.wait()
        self._inside = True
        try:
            return self._vcpu.enter()
        finally:
            self._inside = False
            if self._stopping or not self._may_run.is_set():
                self._left.set()

    def _access(self, make: Callable[[], None]) -> None:
        """``make`` an access of the guest, with the machine lock held."""
        while not self._stopping:  # the machine may be half taken apart
            with self._lock:
                if self._may_run.is_set() and not self._stopping:
                    make()
                    return
            self._may_run.wait()

    def _handle(self, reason: int) -> None:
        self.exits[_EXIT_NAMES.get(reason, f"reason{reason}")] += 1
        match reason:
            case abi.KVM_EXIT_MMIO:
                self._access(self._mmio)
            case abi.KVM_EXIT_IO:
                self._access(self._port_io)
            case abi.KVM_EXIT_INTR | abi.KVM_EXIT_IRQ_WINDOW_OPEN:
                pass
            case abi.KVM_EXIT_SHUTDOWN:
                raise GuestCrashError("the guest crashed: triple fault")
            case abi.KVM_EXIT_INTERNAL_ERROR:
                error = self._vcpu.run.internal.suberror
                raise GuestCrashError(f"the guest crashed: KVM can not emulate it (internal error {error})")
            case abi.KVM_EXIT_FAIL_ENTRY:
                code = self._vcpu.run.fail_entry.hardware_entry_failure_reason
                raise GuestCrashError(f"the guest crashed: the CPU refused its state ({code:#x})")
            case _:
                raise GuestCrashError(f"the guest crashed: unexpected exit {reason} from KVM")

    def _mmio(self) -> None:
        mmio = self._vcpu.run.mmio
        width = mmio.len
        if mmio.is_write:
            value = int.from_bytes(bytes(mmio.data)[:width], "little")
            self._memory_bus.write(mmio.phys_addr, width, value)
        else:
            value = self._memory_bus.read(mmio.phys_addr, width)
            mmio.data[:width] = value.to_bytes(width, "little")

    def _port_io(self) -> None:
        """``count`` accesses of ``size`` bytes to one port (INS and OUTS have more than one)."""
        io = self._vcpu.run.io
        address = ctypes.addressof(self._vcpu.run) + io.data_offset
        data = (ctypes.c_uint8 * (io.size * io.count)).from_address(address)
        for start in range(0, len(data), io.size):
            part = slice(start, start + io.size)
            if io.direction == abi.KVM_EXIT_IO_OUT:
                self._port_bus.write(io.port, io.size, int.from_bytes(bytes(data[part]), "little"))
            else:
                data[part] = self._port_bus.read(io.port, io.size).to_bytes(io.size, "little")
