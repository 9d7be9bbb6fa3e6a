"""What a network device needs of its host side.

Frames cross this seam as virtio-net has them: HEADER_SIZE bytes of struct virtio_net_hdr_mrg_rxbuf
(virtio 1.2, section 5.1.6), then the Ethernet frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HEADER_SIZE = 12
MAX_FRAME = 65550  # 5.1.6.3.1: 65535 bytes of a segmented packet behind an Ethernet header, rounded
MAX_PACKET = HEADER_SIZE + MAX_FRAME


class NetBackend(Protocol):
    """An open, non-blocking network port of the host; outlives the machine, which a reboot builds anew."""

    @property
    def name(self) -> str:
        """Stable from run to run, different for each port of this host where it matters."""
        ...

    @property
    def features(self) -> int:
        """Those virtio-net feature bits (5.1.3) of checksum and segmentation that it can serve."""
        ...

    def fileno(self) -> int:
        """Readable when there may be a frame, writable when ``send`` may take one again."""
        ...

    def set_features(self, features: int) -> None:
        """The driver took ``features``: frames to the guest use no other offload.  Raises OSError."""
        ...

    def receive(self, views: Sequence[memoryview]) -> int:
        """Store the next packet in ``views`` (at least HEADER_SIZE bytes) and return its size, 0 for none.

        ``num_buffers`` of the header is left to the caller.  A packet that does not fit is cut or
        dropped.  Raises OSError when the port is gone for good.
        """
        ...

    def send(self, views: Sequence[memoryview]) -> bool:
        """Send a packet of at most MAX_PACKET bytes; False when it has to wait until ``fileno`` is writable.

        A packet that the host refuses is dropped, as a wire would.  Raises OSError when the port is gone.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...
