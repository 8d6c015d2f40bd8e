"""A share of all traces: stable, spread evenly, and never a part of a trace."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from otel_qtap.plugins.sampling import Sampler, is_sampled, trace_root_id
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.link import Link, LinkMethod
from otel_qtap.transaction.model import Transaction


@pytest.fixture
def member(make_transaction) -> Callable[..., Transaction]:
    """``member("id")`` begins a trace, ``member("other", "id")`` is part of it."""

    def make(request_id: str, root_id: str | None = None) -> Transaction:
        link = None
        if root_id is not None:
            link = Link(method=LinkMethod.STREAM, parent_id="between", root_id=root_id)
        return make_transaction(request_id=request_id, link=link)

    return make


def ids(count: int) -> list[str]:
    generator = IdGenerator(bytes(8))
    return [generator.new(number * 1_000_000) for number in range(count)]


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_share_is_the_rate(rate) -> None:
    """Within four standard deviations, for ids that only differ in a counter."""
    count = 20_000
    kept = sum(is_sampled(request_id, rate) for request_id in ids(count))
    tolerance = 4 * (count * rate * (1 - rate)) ** 0.5
    assert abs(kept - count * rate) <= tolerance


def test_the_ends_are_exact() -> None:
    """Nothing at 0, everything at 1."""
    assert not any(is_sampled(request_id, 0.0) for request_id in ids(1000))
    assert all(is_sampled(request_id, 1.0) for request_id in ids(1000))


def test_a_higher_rate_keeps_what_a_lower_one_keeps() -> None:
    """So raising it adds traces and loses none."""
    kept = [{i for i in ids(2000) if is_sampled(i, rate)} for rate in (0.05, 0.2, 0.7)]
    assert kept[0] < kept[1] < kept[2]


def test_the_answer_never_changes() -> None:
    """Other agents and later versions keep the same ones."""
    sampled = [number for number in range(100) if is_sampled(f"request{number}", 0.1)]
    assert sampled == [9, 20, 28, 29, 32, 39, 47, 53, 57, 61, 63, 90, 98]


def test_the_root_is_where_the_trace_begins(member) -> None:
    """Not the parent, which may have one itself; alone, it is the transaction."""
    assert trace_root_id(member("own", "root")) == "root"
    assert trace_root_id(member("own")) == "own"


@pytest.mark.parametrize("rates", [(0.3,), (0.3, 0.9, 0.0)], ids=["one-rate", "several-rates"])
def test_a_trace_is_kept_or_dropped_whole(rates, member) -> None:
    """Whichever of its members come first, and by whatever rates they come."""
    choose = random.Random(7)  # noqa: S311 - the same each time
    sampler = Sampler(rates)
    decisions: dict[str, set[bool]] = {}
    for root in ids(3000):
        trace = [member(root), member(f"{root}-1", root), member(f"{root}-2", root)]
        choose.shuffle(trace)
        for transaction in trace:
            kept = sampler.keeps(transaction, choose.choice(rates))
            decisions.setdefault(root, set()).add(kept)

    assert all(len(answers) == 1 for answers in decisions.values())
    assert {True, False} == set.union(*decisions.values())


def test_the_first_of_a_trace_decides_by_its_rate(member) -> None:
    """With several rates; what comes later follows, even at 1 or 0."""
    sampler = Sampler((0.0, 1.0))
    assert sampler.keeps(member("attempt", "root"), 1.0)
    assert sampler.keeps(member("root"), 0.0)
    assert not sampler.keeps(member("other attempt", "other"), 0.0)
    assert not sampler.keeps(member("other"), 1.0)


def test_what_is_remembered_is_bounded(member) -> None:
    """The latest traces, at least half the capacity of them."""
    sampler = Sampler((0.0, 1.0), capacity=100)
    for number in range(1000):
        sampler.keeps(member(f"{number}"), 1.0)
    assert all(sampler.keeps(member(f"{number}"), 0.0) for number in range(950, 1000))
    assert not any(sampler.keeps(member(f"{number}"), 0.0) for number in range(800))
    remembered = len(sampler._recent) + len(sampler._older)
    assert remembered <= 100
