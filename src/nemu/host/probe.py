"""Is there KVM here, and does it run guest code at the speed of the CPU?

Some /dev/kvm only interpret guest code: right, but a thousand times slower.  They look like any other,
so a throwaway VM runs a short loop against the clock.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import NamedTuple

from nemu.errors import HostError

# In real mode: mov cx, 65535; l: loop l; hlt.  Hardware needs some 0.1 ms; an interpreter that was
# measured at 4 million instructions a second 16 ms.
ROUNDS = 65_535
LIMIT = 0.004  # seconds
_CODE = bytes([0xB9, *ROUNDS.to_bytes(2, "little"), 0xE2, 0xFE, 0xF4])
_ATTEMPTS = 3


class Probe(NamedTuple):
    """``reason`` says what is missing; "" when KVM is usable and fast."""

    usable: bool
    fast: bool
    reason: str


def probe() -> Probe:
    """Look at /dev/kvm and time it."""
    if not os.path.exists("/dev/kvm"):
        return Probe(False, False, "no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Probe(False, False, "no permission for /dev/kvm")
    try:
        # A busy machine can only make a run slower: the best of a few counts.
        best = LIMIT * 1000
        for _ in range(_ATTEMPTS):
            best = min(best, _time_loop())
            if best <= LIMIT:
                return Probe(True, True, "")
    except HostError as error:
        return Probe(False, False, str(error))
    return Probe(True, False, f"/dev/kvm only interprets, {best / ROUNDS * 1e9:.0f} ns an instruction")


def _time_loop() -> float:
    """Seconds for the loop in a VM that exists only for it."""
    from nemu.arch.x86_64 import abi
    from nemu.kvm.abi import KVM_EXIT_HLT
    from nemu.kvm.handles import System
    from nemu.memory import host_address

    system = System()
    vm = vcpu = None
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[: len(_CODE)] = _CODE
    try:
        vm = system.create_vm()
        vm.set_memory(0, 0, mmap.PAGESIZE, host_address(page))
        vcpu = vm.create_vcpu(0)
        sregs = abi.kvm_sregs()
        vcpu.call(abi.KVM_GET_SREGS, sregs)
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.call(abi.KVM_SET_SREGS, sregs)
        vcpu.call(abi.KVM_SET_REGS, abi.kvm_regs(rip=0, rflags=2))
        start = time.perf_counter()
        while not vcpu.enter():  # a signal came
            pass
        elapsed = time.perf_counter() - start
        if vcpu.run.exit_reason != KVM_EXIT_HLT:
            raise HostError(f"/dev/kvm cannot run a loop (exit {vcpu.run.exit_reason})")
        return elapsed
    finally:
        for handle in (vcpu, vm, system):
            if handle is not None:
                handle.close()
