"""
The promise of the linker, under random traffic and random loss: no link is ever wrong.

Each request carries a number that HAProxy passes on, so a wrong link shows; attempts that
were never sent are known by the port of their connection.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from conversations import Capture
from hypothesis import given, settings
from hypothesis import strategies as st
from proxied import Life, number_of, random_life

from otel_qtap.events import Event
from otel_qtap.transaction.model import Ending, Transaction

_SEEDS = st.integers(0, 2**32)
_MANY = settings(max_examples=300, deadline=None)


def _capture(events: Iterable[Event], now_ns: int) -> Capture:
    capture = Capture()
    capture.take(events)
    capture.tracker.close(now_ns)
    capture.assembler.linker.close()
    return capture


def _assert_true(transactions: list[Transaction], life: Life) -> None:
    """Every link leads to the request that caused it."""
    by_id = {t.request_id: t for t in transactions}
    assert len(by_id) == len(transactions)
    for transaction in transactions:
        if transaction.link is None:
            continue
        assert not transaction.direction.is_ingress
        parent = by_id[transaction.link.parent_id]
        assert parent.direction.is_ingress
        number = number_of(transaction)
        if transaction.ending is Ending.CONNECT_FAILED:
            number = life.owner[transaction.local.port]
        assert number_of(parent) == number


@_MANY
@given(_SEEDS, st.integers(1, 12), st.integers(1, 4))
def test_without_loss_every_attempt_is_linked(seed, clients, threads) -> None:
    """In order, with its position; and each client's request says how many there were."""
    life = random_life(seed, clients=clients, threads=threads)
    capture = _capture(life.timeline.events, life.timeline.now_ns)

    _assert_true(capture.transactions, life)
    attempts: dict[int, list[tuple[int, int]]] = {number: [] for number in life.attempts}
    for transaction in capture.transactions:
        if transaction.direction.is_ingress:
            assert transaction.link is None
            continue
        assert transaction.link is not None
        number = number_of(transaction)
        if transaction.ending is Ending.CONNECT_FAILED:
            number = life.owner[transaction.local.port]
        attempts[number].append((transaction.resend_count, transaction.local.port))
    assert attempts == {n: list(enumerate(ports)) for n, ports in life.attempts.items()}
    for transaction in capture.transactions:
        if transaction.direction.is_ingress and number_of(transaction) in life.answered:
            assert transaction.hop is not None
            assert transaction.hop.attempts == len(life.attempts[number_of(transaction)])
            assert 0 <= transaction.hop.overhead_ns <= transaction.timings.duration_ns
    assert capture.counters.total("otel_qtap.link.unlinked") == 0
    assert capture.counters.total("otel_qtap.link.violations") == 0


@_MANY
@given(_SEEDS, st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.01, 0.05, 0.2]))
def test_no_loss_makes_a_wrong_link(seed, clients, threads, loss) -> None:
    """Whatever records did not fit into the ring: openings, bytes or ends."""
    life = random_life(seed, clients=clients, threads=threads)
    chance = random.Random(seed)  # noqa: S311 - no secret
    kept = [event for event in life.timeline.events if chance.random() >= loss]

    _assert_true(_capture(kept, life.timeline.now_ns).transactions, life)


@_MANY
@given(_SEEDS, st.integers(1, 12), st.integers(1, 4))
def test_numbers_that_say_nothing_make_no_wrong_link(seed, clients, threads) -> None:
    """As when they are read in the wrong place: then the checks have to do."""
    life = random_life(seed, clients=clients, threads=threads, serials=False)

    _assert_true(_capture(life.timeline.events, life.timeline.now_ns).transactions, life)


@_MANY
@given(_SEEDS)
def test_nothing_waits_for_ever(seed) -> None:
    """Every exchange becomes one transaction, whatever is known about its place."""
    life = random_life(seed)
    chance = random.Random(seed)  # noqa: S311 - no secret
    kept = [event for event in life.timeline.events if chance.random() >= 0.05]
    capture = _capture(kept, life.timeline.now_ns)

    (waiting,) = (s.value for s in capture.counters.samples() if s.name.endswith("link.waiting"))
    assert waiting == 0
    failed = capture.counters.value(
        "otel_qtap.transactions", role="client", ending=Ending.CONNECT_FAILED.value
    )
    told = sum(t.ending is Ending.CONNECT_FAILED for t in capture.transactions)
    seen = capture.counters.total("otel_qtap.transactions")
    assert len(capture.transactions) == seen - (failed - told)
