"""A vCPU whose exits a test writes down."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

from nemu.kvm import abi

Exit = Callable[["FakeVcpu"], bool]


class FakeVcpu:
    """Stands for kvm.handles.Vcpu: ``run`` is a kvm_run with a page behind it for port I/O data.

    Each of ``exits`` fills in ``run`` and says whether it is an exit; after the last one the CPU is
    halted until ``immediate_exit``.
    """

    DATA = 4096

    def __init__(self, *exits: Exit) -> None:
        self._buffer = ctypes.create_string_buffer(8192)
        self.run = abi.kvm_run.from_buffer(self._buffer)
        self._exits = list(exits)
        self.halted = threading.Event()

    def enter(self) -> bool:
        if self.run.immediate_exit:
            return False
        if self._exits:
            return self._exits.pop(0)(self)
        self.halted.set()
        while not self.run.immediate_exit:
            threading.Event().wait(0.001)
        return False

    def data(self, length: int) -> bytes:
        return self._buffer.raw[self.DATA : self.DATA + length]

    def set_data(self, data: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self._buffer) + self.DATA, data, len(data))
