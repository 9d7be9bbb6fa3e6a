"""SIGBUS in files that are mapped as guest memory: the run ends with a reason instead of a dead process.

The host sends it when this process touches a page that the file has no more (somebody made it shorter) or
that its file system cannot give (it is full, the disk is broken).  Python's own signal handlers run
only after the access, which never succeeds; so this one is a C function pointer.  It puts an empty page
where the file's was, so that the access goes on, and has the owner told by the event loop.

KVM and the host kernel do not get the signal: a guest that touches such a page ends KVM_RUN with EFAULT,
and a system call gives EFAULT.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
from collections.abc import Callable

_SA_SIGINFO = 4  # asm-generic/signal-defs.h
_SI_ADDR = 16  # offset of si_addr in siginfo_t (asm-generic/siginfo.h)
_MAP_FIXED = 0x10  # asm-generic/mman-common.h
_MAP_FAILED = ctypes.c_void_p(-1).value

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _SigAction(ctypes.Structure):
    """struct sigaction of the C library (sigaction(2)); the mask has 1024 bits."""

    _fields_ = (
        ("handler", _Handler),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.mmap.restype = ctypes.c_void_p

_guarded: dict[int, tuple[int, Callable[[], None]]] = {}


def guard(address: int, size: int, lost: Callable[[], None]) -> None:
    """From now on a SIGBUS in ``size`` bytes at ``address`` calls ``lost``.

    It runs in the midst of anything, in any thread: it may do no more than wake the loop.
    """
    if not _guarded:
        action = _SigAction(_handler, flags=_SA_SIGINFO)
        _libc.sigaction(signal.SIGBUS, ctypes.byref(action), None)
    _guarded[address] = (size, lost)


def release(address: int) -> None:
    """The memory at ``address`` goes away."""
    _guarded.pop(address, None)
    if not _guarded:
        _libc.signal(signal.SIGBUS, int(signal.SIG_DFL))


def _on_sigbus(number: int, info: int, context: int) -> None:
    address = ctypes.c_uint64.from_address(info + _SI_ADDR).value
    for start, (size, lost) in _guarded.items():
        if start <= address < start + size:
            page = address & -mmap.PAGESIZE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            access = mmap.PROT_READ | mmap.PROT_WRITE
            if _libc.mmap(page, mmap.PAGESIZE, access, flags, -1, 0) != _MAP_FAILED:
                lost()
                return
    # Nobody's: the access is tried again, and ends the process as it would have without us.
    _libc.signal(number, int(signal.SIG_DFL))  # Python's own works in the main thread only


_handler = _Handler(_on_sigbus)  # kept: the kernel has its address
