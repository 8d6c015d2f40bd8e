"""What is kept of a body, and the bound on all of them together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.counters import Counter
from otel_qtap.protocol.events import (
    BodyData,
    MessageEnd,
    MessageEnding,
    RequestHead,
    ResponseHead,
)
from otel_qtap.transaction.exchange import BodyBuffer, Exchange, MemoryBudget
from otel_qtap.transaction.model import Body


@pytest.fixture
def refused() -> Counter:
    return Counter("refused", "By", "", ())


def _exchange() -> Exchange:
    head = RequestHead("POST", "/", "1.1", (("a", "b"),), 40, 3)
    return Exchange(2, head, 10, 11, 7, 8, in_order=True)


def test_a_budget_refuses_what_does_not_fit_and_counts_it(refused) -> None:
    """To the byte; what is given back can be taken again."""
    budget = MemoryBudget(10, refused)

    assert budget.take(10)
    assert not budget.take(1)
    assert refused.value == 1
    budget.give_back(4)
    assert not budget.take(5)
    assert budget.take(4)
    assert (budget.used, refused.value) == (10, 6)


def test_a_body_in_one_piece_is_not_copied(refused) -> None:
    """Most bodies are; the bytes go through as they are."""
    data = b"x" * 1000
    body = BodyBuffer()
    body.add(BodyData(data, len(data)), 5000, MemoryBudget(5000, refused))

    assert body.finish().content is data


def test_past_a_hole_nothing_is_kept(refused) -> None:
    """What is kept is the true beginning of the body, the size that of all of it."""
    body, budget = BodyBuffer(), MemoryBudget(100, refused)
    for data, size in ((b"abc", 3), (b"de", 4), (b"hij", 3)):
        body.add(BodyData(data, size), 100, budget)

    assert body.finish() == Body(content=b"abcde", size=10, wire_size=0)
    assert (body.kept, budget.used) == (5, 5)


def test_past_a_refusal_nothing_is_kept(refused) -> None:
    """Even if a later piece would fit."""
    body, budget = BodyBuffer(), MemoryBudget(5, refused)
    for data in (b"abc", b"defg", b"h"):
        body.add(BodyData(data, len(data)), 100, budget)

    assert body.finish().content == b"abc"
    assert (body.size, refused.value) == (8, 4)


@given(
    st.lists(st.tuples(st.binary(max_size=8), st.integers(0, 4)), max_size=8),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_what_is_kept_is_a_true_beginning_within_its_bounds(pieces, limit, memory) -> None:
    """Whatever the pieces, the holes behind them and the bounds."""
    budget = MemoryBudget(memory, Counter("refused", "By", "", ()))
    body, whole = BodyBuffer(), b""
    for data, hole in pieces:
        body.add(BodyData(data, len(data) + hole), limit, budget)
        whole += data + b"\0" * hole

    kept = body.finish()

    assert whole.startswith(kept.content)
    assert kept.size == len(whole)
    assert len(kept.content) == body.kept == budget.used <= min(limit, memory)
    if not any(hole for _, hole in pieces) and memory >= len(whole):
        assert kept.content == whole[:limit]


def test_an_exchange_becomes_its_two_messages(refused) -> None:
    """Heads, bodies, trailers and interim statuses."""
    exchange, budget = _exchange(), MemoryBudget(100, refused)
    exchange.add_request_body(BodyData(b"abc", 3), 100, budget)
    exchange.end_request(MessageEnd(MessageEnding.COMPLETE, (("t", "1"),), 13), 20)
    exchange.response = ResponseHead(200, "OK", "1.1", (("c", "d"),), 50, 2)
    exchange.interim_statuses = (100,)
    exchange.add_response_body(BodyData(b"de", 2), 100, budget)
    exchange.end_response(MessageEnd(MessageEnding.COMPLETE, (("u", "2"),), 2), 30)

    request, response = exchange.finish_request(), exchange.finish_response()

    assert (request.method, request.headers, request.head_size) == ("POST", (("a", "b"),), 40)
    assert request.body == Body(content=b"abc", size=3, wire_size=13)
    assert request.trailers == (("t", "1"),)
    assert (response.status, response.headers, response.head_size) == (200, (("c", "d"),), 50)
    assert response.body == Body(content=b"de", size=2, wire_size=2)
    assert (response.trailers, response.interim_statuses) == ((("u", "2"),), (100,))
    exchange.release(budget)
    assert budget.used == 0


@pytest.mark.parametrize(
    ("ending", "request_end", "response_end"),
    [
        (MessageEnding.COMPLETE, 20, 30),
        (MessageEnding.CLOSED, 0, 30),
        (MessageEnding.INCOMPLETE, 0, 0),
        (MessageEnding.LOST, 0, 0),
    ],
)
def test_only_an_end_that_was_seen_has_a_time(ending, request_end, response_end) -> None:
    """A message that broke off, or whose end was lost, has none."""
    exchange = _exchange()
    exchange.end_request(MessageEnd(ending, (), 0), 20)
    exchange.end_response(MessageEnd(ending, (), 0), 30)

    assert (exchange.request_end_ns, exchange.response_end_ns) == (request_end, response_end)
    assert exchange.is_request_over
