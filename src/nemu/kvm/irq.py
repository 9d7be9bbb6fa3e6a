"""MSI routes: an eventfd becomes a message to the local APICs without a process in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemu.kvm import abi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nemu.kvm.handles import Vm


class MsiRoutes:
    """The GSI routing table of a VM (implements interfaces.MsiRouter).

    ``fixed`` are the routes of the interrupt controller's own pins; message routes take the
    numbers from ``first_gsi`` up.  Called with the machine lock held.
    """

    def __init__(self, vm: Vm, first_gsi: int, fixed: Sequence[abi.kvm_irq_routing_entry] = ()) -> None:
        self._vm = vm
        self._fixed = list(fixed)
        self._first = first_gsi
        self._routes: dict[int, abi.kvm_irq_routing_entry] = {}  # gsi -> entry
        self._gsi_of: dict[int, int] = {}  # eventfd -> gsi, kept while the vector is masked
        self._connected: set[int] = set()

    def connect(self, eventfd: int, address: int, data: int) -> None:
        gsi = self._gsi_of.get(eventfd)
        if gsi is None:
            gsi = self._gsi_of[eventfd] = self._free_gsi()
        message = abi.kvm_irq_routing_msi(address & 0xFFFFFFFF, address >> 32, data)
        entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_MSI)
        entry.u.msi = message
        known = self._routes.get(gsi)
        if known is None or bytes(known) != bytes(entry):
            self._routes[gsi] = entry
            self._vm.set_gsi_routing([*self._fixed, *self._routes.values()])
        if eventfd not in self._connected:
            self._vm.irqfd(gsi, eventfd, assign=True)
            self._connected.add(eventfd)

    def disconnect(self, eventfd: int) -> None:
        if eventfd in self._connected:
            self._connected.remove(eventfd)
            self._vm.irqfd(self._gsi_of[eventfd], eventfd, assign=False)

    def forget(self, eventfd: int) -> None:
        self.disconnect(eventfd)
        gsi = self._gsi_of.pop(eventfd, None)
        if gsi is not None:
            del self._routes[gsi]

    def _free_gsi(self) -> int:
        gsi = self._first
        while gsi in self._routes:
            gsi += 1
        return gsi
