"""What comes and goes in a running machine: CPUs, memory devices, PCI devices.

Each module joins the slots of one kind: their hot-plug controller, which talks to the guest, and what is put
into them.  A removal is asked for; it happens when the guest lets go.  The calls are made with
the machine lock held, and raise PlugError with nothing changed.
"""

from __future__ import annotations

from nemu.errors import NemuError


class PlugError(NemuError):
    """This cannot be plugged in, or taken out, now."""
