"""Counting: one number for each name and its labels, readable by anybody at any time."""

from __future__ import annotations

import pytest

from otel_qtap.counters import CounterSet, HistogramSample, Sample


def test_the_same_name_and_labels_are_the_same_counter(counters: CounterSet) -> None:
    """Two components that count the same thing count together, whatever order labels have."""
    first = counters.counter("a.b", "{event}", "Text", reason="x", role="y")
    second = counters.counter("a.b", "{event}", "Text", role="y", reason="x")
    first.add()
    second.add(4)

    assert first is second
    assert counters.value("a.b", reason="x", role="y") == 5


def test_other_labels_are_other_counters(counters: CounterSet) -> None:
    """The total is that of all of them, and of no other name."""
    for reason, amount in (("x", 2), ("y", 3)):
        counters.counter("lost", "{event}", "", reason=reason).add(amount)
    counters.counter("lost.bytes", "By", "").add(100)

    assert counters.value("lost", reason="x") == 2
    assert counters.total("lost") == 5


def test_what_was_never_counted_is_nothing(counters: CounterSet) -> None:
    """Asking does not make a counter."""
    assert counters.value("a", reason="x") == 0
    assert counters.total("a") == 0
    assert list(counters.samples()) == []


def test_samples_are_sorted_and_complete(counters: CounterSet) -> None:
    """Counters first, gauges as they are when somebody looks."""
    level = [1.0]
    counters.counter("b", "By", "B", reason="z").add(2)
    counters.counter("b", "By", "B", reason="a").add(1)
    counters.counter("a", "{x}", "A")
    counters.gauge("c", "{y}", "C", lambda: level[0], kind="k")
    level[0] = 7.5

    assert list(counters.samples()) == [
        Sample("a", (), 0, "{x}", "A", is_gauge=False),
        Sample("b", (("reason", "a"),), 1, "By", "B", is_gauge=False),
        Sample("b", (("reason", "z"),), 2, "By", "B", is_gauge=False),
        Sample("c", (("kind", "k"),), 7.5, "{y}", "C", is_gauge=True),
    ]


def test_a_gauge_that_is_registered_again_is_replaced(counters: CounterSet) -> None:
    """A component that is made anew takes its place."""
    counters.gauge("c", "1", "", lambda: 1)
    counters.gauge("c", "1", "", lambda: 2)

    assert [s.value for s in counters.samples()] == [2]


def test_counters_can_be_added_while_somebody_reads(counters: CounterSet) -> None:
    """The status server reads in a thread of its own."""
    counters.counter("a", "1", "")
    counters.gauge("g", "1", "", lambda: 0)
    seen = []
    for sample in counters.samples():
        seen.append(sample.name)
        counters.counter(f"new.{len(seen)}", "1", "")
        counters.gauge(f"newer.{len(seen)}", "1", "", lambda: 0)

    assert {"a", "g"} <= set(seen)


@pytest.mark.parametrize("amount", [0, 1, 10**12])
def test_a_counter_grows_by_what_it_is_told(counters: CounterSet, amount) -> None:
    """One when nothing is said."""
    counter = counters.counter("a", "1", "")
    counter.add()
    counter.add(amount)

    assert counter.value == 1 + amount


BUCKETS = [
    pytest.param(-1, 0, id="below-all"),
    pytest.param(1, 0, id="on-a-bound"),
    pytest.param(1.01, 1, id="between"),
    pytest.param(10, 1, id="on-the-last"),
    pytest.param(10.5, 2, id="above-all"),
]


@pytest.mark.parametrize(("value", "bucket"), BUCKETS)
def test_a_bound_belongs_to_its_bucket(counters: CounterSet, value, bucket) -> None:
    """As Prometheus has it: less than or equal."""
    histogram = counters.histogram("h", "ms", "", (1, 10))
    histogram.record(value)

    assert [n for n, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.total == value


def test_histograms_are_sorted_complete_and_as_they_are_now(counters: CounterSet) -> None:
    """The same name and labels are the same histogram."""
    counters.histogram("b", "By", "B", (1,), role="z").record(5)
    counters.histogram("b", "By", "B", (1,), role="a").record(1)
    counters.histogram("b", "By", "B", (1,), role="a").record(0.5)
    counters.histogram("a", "ms", "A", (0.1, 2))

    assert list(counters.histograms()) == [
        HistogramSample("a", (), (0.1, 2), (0, 0, 0), 0, "ms", "A"),
        HistogramSample("b", (("role", "a"),), (1,), (2, 0), 1.5, "By", "B"),
        HistogramSample("b", (("role", "z"),), (1,), (0, 1), 5, "By", "B"),
    ]
    assert list(counters.samples()) == []
