"""The emulated host: nemu's own KVM host for machines whose KVM is missing or slow.

QEMU emulates a computer with hardware virtualization, a distribution kernel with KVM runs on it, and
nemu runs inside as on any host.  It is built from distribution packages once, and restored from a
snapshot after that.
"""

from nemu.host.emulated.host import CallError, Host, Result
from nemu.host.emulated.session import run

__all__ = ["CallError", "Host", "Result", "run"]
