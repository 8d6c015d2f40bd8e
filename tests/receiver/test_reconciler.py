"""When the kernel's account is compared with what arrived."""

from __future__ import annotations

import pytest

from otel_qtap.receiver.reconciler import QUIET_NS, Account, Reconciler

SECOND_NS = 1_000_000_000
ACCOUNT = {1: (10, 20)}


class Table:
    """A kernel side whose ring is written and drained by the test."""

    def __init__(self) -> None:
        self.written_bytes = self.read_bytes = 0
        self.reads = 0

    def living_connections(self) -> dict[int, tuple[int, int]]:
        """Return the account."""
        self.reads += 1
        return dict(ACCOUNT)


class Compared:
    """A reconciler, what it reads, and what it has compared."""

    def __init__(self) -> None:
        self.table = Table()
        self.done: list[tuple[Account, int]] = []
        self.now_ns = 0
        self.reconciler = Reconciler(self.table, lambda *args: self.done.append(args))

    def wait(self, seconds: int, *, is_holding: bool = False) -> None:
        """Let time go by."""
        for _ in range(seconds):
            self.now_ns += SECOND_NS
            self.reconciler.tick(self.now_ns, is_holding=is_holding)


@pytest.fixture
def compared() -> Compared:
    """A reconciler that has heard of a loss."""
    compared = Compared()
    compared.reconciler.lose(0)
    return compared


def test_without_a_loss_the_table_is_not_read() -> None:
    """It takes a while to read."""
    compared = Compared()
    compared.wait(60)
    assert compared.table.reads == 0


def test_after_a_loss_it_is_compared_once(compared) -> None:
    """As soon as it has been quiet, with the time at which it was read."""
    compared.wait(60)
    assert compared.table.reads == 1
    assert compared.done == [(ACCOUNT, QUIET_NS + SECOND_NS)]


def test_while_there_are_losses_it_is_put_off(compared) -> None:
    """Also if the table has been read by then."""
    for _ in range(20):
        compared.wait(6)
        compared.reconciler.lose(compared.now_ns)
    assert compared.done == []
    compared.wait(8)
    assert len(compared.done) == 1


def test_what_the_ring_had_by_then_has_to_be_drained_before(compared) -> None:
    """Up to a second after the table was read: a program counts before it writes."""
    compared.wait(6)
    compared.table.written_bytes = 4000
    compared.wait(1)
    compared.table.written_bytes = 9000
    compared.table.read_bytes = 3999
    compared.wait(30)
    assert compared.done == []
    compared.table.read_bytes = 4000
    compared.wait(1)
    assert len(compared.done) == 1


def test_what_was_drained_must_have_gone_on(compared) -> None:
    """Events can be held until the marks they carry are verified."""
    compared.wait(30, is_holding=True)
    assert compared.done == []
    compared.wait(1)
    assert len(compared.done) == 1
