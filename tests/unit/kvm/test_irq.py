"""The GSI routing table and irqfds, against a VM as strict as KVM."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nemu.kvm import abi
from nemu.kvm.irq import MsiRoutes

FIRST = 24


class FakeVm:
    """Keeps the table and the irqfds; refuses what KVM refuses (EBUSY, a GSI without a route)."""

    def __init__(self) -> None:
        self.table: dict[int, tuple[int, int, int]] = {}
        self.irqfds: dict[int, int] = {}  # eventfd -> gsi
        self.updates = 0

    def set_gsi_routing(self, entries: Sequence[abi.kvm_irq_routing_entry]) -> None:
        gsis = [entry.gsi for entry in entries]
        assert len(set(gsis)) == len(gsis)
        self.table = {
            entry.gsi: (entry.type, entry.u.msi.address_hi << 32 | entry.u.msi.address_lo, entry.u.msi.data)
            for entry in entries
        }
        self.updates += 1

    def irqfd(self, gsi: int, eventfd: int, *, assign: bool) -> None:
        if assign:
            assert eventfd not in self.irqfds
            assert gsi in self.table
            self.irqfds[eventfd] = gsi
        else:
            assert self.irqfds.pop(eventfd) == gsi


class Wired:
    def __init__(self, fixed: Sequence[abi.kvm_irq_routing_entry] = ()) -> None:
        self.vm = FakeVm()
        self.routes = MsiRoutes(self.vm, FIRST, fixed)  # type: ignore[arg-type]

    def message(self, eventfd: int) -> tuple[int, int]:
        kind, address, data = self.vm.table[self.vm.irqfds[eventfd]]
        assert kind == abi.KVM_IRQ_ROUTING_MSI
        return address, data


def test_each_eventfd_has_its_own_message() -> None:
    wired = Wired()
    wired.routes.connect(10, 0xFEE0_1000, 0x41)
    wired.routes.connect(11, 0x12_FEE0_2000, 0x8000_0042)
    assert wired.message(10) == (0xFEE0_1000, 0x41)
    assert wired.message(11) == (0x12_FEE0_2000, 0x8000_0042)
    assert min(wired.vm.table) == FIRST


def test_a_changed_message_replaces_the_route_and_keeps_the_irqfd() -> None:
    wired = Wired()
    wired.routes.connect(10, 0xFEE0_1000, 0x41)
    wired.routes.connect(10, 0xFEE0_1000, 0x55)
    assert wired.message(10) == (0xFEE0_1000, 0x55)
    assert len(wired.vm.table) == 1


def test_masking_and_unmasking_does_not_touch_the_table() -> None:
    wired = Wired()
    wired.routes.connect(10, 0xFEE0_1000, 0x41)
    for _ in range(5):
        wired.routes.disconnect(10)
        assert wired.vm.irqfds == {}
        wired.routes.connect(10, 0xFEE0_1000, 0x41)
    assert wired.vm.updates == 1


def test_disconnecting_and_forgetting_twice_or_the_unknown_does_nothing() -> None:
    wired = Wired()
    wired.routes.disconnect(10)
    wired.routes.forget(10)
    wired.routes.connect(10, 0xFEE0_1000, 0x41)
    for _ in range(2):
        wired.routes.disconnect(10)
        wired.routes.forget(10)
    assert wired.vm.irqfds == {}


def test_a_forgotten_route_is_used_again_by_the_next() -> None:
    wired = Wired()
    for eventfd in range(100):
        wired.routes.connect(eventfd, 0xFEE0_1000, eventfd)
        wired.routes.forget(eventfd)
    wired.routes.connect(100, 0xFEE0_1000, 0x77)
    assert set(wired.vm.table) == {FIRST}
    assert wired.message(100) == (0xFEE0_1000, 0x77)


@pytest.mark.parametrize("count", [1, 24])
def test_the_pins_of_the_interrupt_controller_stay_in_the_table(count: int) -> None:
    fixed = [abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_IRQCHIP) for gsi in range(count)]
    wired = Wired(fixed)
    wired.routes.connect(10, 0xFEE0_1000, 0x41)
    assert set(wired.vm.table) == {*range(count), FIRST}
