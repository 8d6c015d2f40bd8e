"""
Marks that contradict each other are told of, and nothing is linked by them.

What happens is told by a script, as in the tests of the linker; here it is told of wrong marks.
"""

from __future__ import annotations

import random

import pytest
from conversations import IN_OTHER_TASK, known
from proxied import Proxy, number_of, parent_of, request, response

from otel_qtap.events import StreamMark
from otel_qtap.transaction.model import Transaction

PID = 987
BLIND_NS = 60_000_000_000
ONE, TWO = known(1), known(2, address=0x7F80, task=0x9980)


class Told(Proxy):
    """A proxy whose linker is listened to."""

    def __init__(self) -> None:
        super().__init__()
        self.linker = self.capture.assembler.linker
        self.violations: list[tuple[int, str, int]] = []
        self.linker.on_violation = lambda *violation: self.violations.append(violation)

    def serve(self, number: int, sent: StreamMark, answered: StreamMark) -> None:
        """Serve a request from its first byte to its last; the marks may be wrong."""
        client = self.client()
        client.ask(request(number))
        self.forward(request(number), sent)
        client.answer(response(200), answered)


@pytest.fixture
def proxy() -> Told:
    """A proxy that has done nothing yet."""
    return Told()


def wrong(transactions: list[Transaction]) -> list[int]:
    """Return the numbers of requests that were linked to another's."""
    parents = [(t, parent_of(t, transactions)) for t in transactions]
    return [number_of(t) for t, p in parents if p is not None and number_of(t) != number_of(p)]


def linked(transactions: list[Transaction]) -> list[int]:
    """Return the numbers of requests to backends that have a parent."""
    return sorted(number_of(t) for t in transactions if t.link is not None)


def test_contradicting_marks_are_told_with_the_time_of_the_older(proxy) -> None:
    """So that whoever hears of it knows whether he has done something about it since."""
    proxy.serve(1, ONE, ONE)
    answered_ns = proxy.timeline.now_ns
    proxy.forward(request(2), ONE)  # after its answer
    proxy.serve(3, TWO, TWO)
    client = proxy.client()
    client.ask(request(4))
    client.answer(response(200), TWO)  # the stream of another's answer

    proxy.play()

    checks = [(pid, check) for pid, check, _ in proxy.violations]
    assert checks == [(PID, "answered"), (PID, "two_clients")]
    (_, _, first_ns), (_, _, second_ns) = proxy.violations
    assert first_ns <= answered_ns
    assert answered_ns < second_ns <= proxy.timeline.now_ns


def test_what_fits_together_is_no_violation(proxy) -> None:
    """However much of it."""
    for number in range(50):
        proxy.serve(number, known(number), known(number))

    assert len(linked(proxy.play())) == 50
    assert not proxy.violations


@pytest.mark.parametrize(("later_ns", "is_told"), [(0, False), (BLIND_NS * 2, True)])
def test_where_something_was_lost_nobody_is_told(proxy, later_ns, is_told) -> None:
    """What is missing may explain it; for a minute."""
    proxy.linker.lose(proxy.timeline.now_ns)
    proxy.timeline.now_ns += later_ns
    proxy.serve(1, ONE, ONE)
    proxy.forward(request(2), ONE)

    proxy.play()

    assert proxy.counted("violations", check="answered") == 1
    assert bool(proxy.violations) is is_told


def test_nothing_is_linked_by_marks_that_are_not_trusted(proxy) -> None:
    """Neither what waits for its answer, nor what is still to end, nor what comes later."""
    client, late = proxy.client(), proxy.client()
    client.ask(request(1))
    late.ask(request(2))
    proxy.forward(request(1), ONE)
    server = proxy.server(TWO)
    server.ask(request(2), IN_OTHER_TASK)
    proxy.play()

    proxy.linker.distrust(PID, proxy.timeline.now_ns)
    client.answer(response(200), ONE)
    late.answer(response(200), TWO)
    server.answer(response(200))
    transactions = proxy.play()

    assert linked(transactions) == []
    assert proxy.counted("unlinked", reason="violation") == 2
    proxy.serve(3, known(3), known(3))
    assert linked(proxy.play()) == [3]


def test_other_processes_are_trusted_as_before(proxy) -> None:
    """It is their own memory that marks them."""
    proxy.linker.distrust(PID + 1, proxy.timeline.now_ns + BLIND_NS)
    proxy.serve(1, ONE, ONE)

    assert linked(proxy.play()) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_contradicting_marks_never_give_a_wrong_parent(proxy, seed) -> None:
    """
    One request after the other, some of which are marked with another's stream.

    Each of these marks contradicts the others, as there is never more than one request in the
    works. When the marks are right again, all is linked again.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    spoilt: set[int] = set()
    for number in range(100):
        marks = [known(number), known(number)]
        if chance.random() < 0.3:
            other = max(0, number - chance.randrange(1, 4))
            marks[chance.randrange(2)] = known(other)
            spoilt |= {number, other}
        proxy.serve(number, *marks)
        proxy.play()
        if len(proxy.violations) > 2:
            proxy.violations.clear()
            proxy.linker.distrust(PID, proxy.timeline.now_ns)
    for number in range(100, 120):
        proxy.serve(number, known(number), known(number))
    transactions = proxy.play()

    assert wrong(transactions) == []
    assert set(range(100, 120)) <= set(linked(transactions))
    assert set(range(120)) - spoilt <= set(linked(transactions))
