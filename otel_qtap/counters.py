"""
Counters that say what the agent did and, above all, what it could not do.

Every queue, buffer and table of the agent has a bound; whatever does not fit is
counted here under a reason, and ``/metrics`` shows it. This is the lowest layer:
it imports nothing of ours, and every other layer may count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Counter", "CounterSet", "Histogram", "HistogramSample", "Sample"]


class Sample(NamedTuple):
    """One number as ``/metrics`` prints it."""

    name: str
    """OpenTelemetry style, dots between words: ``otel_qtap.receiver.lost``."""
    labels: tuple[tuple[str, str], ...]
    value: float
    unit: str
    description: str
    is_gauge: bool


class HistogramSample(NamedTuple):
    """One histogram as it was when somebody looked."""

    name: str
    labels: tuple[tuple[str, str], ...]
    bounds: tuple[float, ...]
    """Upper bounds of the buckets, ascending; each belongs to its bucket."""
    counts: tuple[int, ...]
    """Of each bucket, not accumulated; the last is for what is above all bounds."""
    total: float
    """Sum of all values."""
    unit: str
    description: str


class Counter:
    """A number that only grows. One thread writes it, any thread may read it."""

    __slots__ = ("description", "labels", "name", "unit", "value")

    def __init__(
        self, name: str, unit: str, description: str, labels: tuple[tuple[str, str], ...]
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.labels = labels
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Count ``amount`` more."""
        self.value += amount


class Histogram:
    """How values spread over fixed buckets. One thread writes it, any thread may read it."""

    __slots__ = ("bounds", "counts", "description", "labels", "name", "total", "unit")

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        labels: tuple[tuple[str, str], ...],
        bounds: tuple[float, ...],
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.labels = labels
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def record(self, value: float) -> None:
        """Count ``value`` in its bucket: the first whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class CounterSet:
    """
    All counters of one agent.

    ``counter`` and ``histogram`` return the same object for the same name and labels,
    so two components that count the same thing count together.
    """

    def __init__(self) -> None:
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], Counter] = {}
        self._gauges: dict[
            tuple[str, tuple[tuple[str, str], ...]], tuple[str, str, Callable[[], float]]
        ] = {}
        self._histograms: dict[tuple[str, tuple[tuple[str, str], ...]], Histogram] = {}

    def counter(self, name: str, unit: str, description: str, **labels: str) -> Counter:
        """Return the counter of that name and these labels; ``unit`` as in UCUM (``{event}``)."""
        key = (name, tuple(sorted(labels.items())))
        found = self._counters.get(key)
        if found is None:
            found = self._counters[key] = Counter(name, unit, description, key[1])
        return found

    def histogram(
        self, name: str, unit: str, description: str, bounds: tuple[float, ...], **labels: str
    ) -> Histogram:
        """Return the histogram of that name and these labels; ``bounds`` must ascend."""
        key = (name, tuple(sorted(labels.items())))
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms[key] = Histogram(name, unit, description, key[1], bounds)
        return found

    def gauge(
        self, name: str, unit: str, description: str, read: Callable[[], float], **labels: str
    ) -> None:
        """Register a number that goes up and down; ``read`` is called when somebody looks."""
        self._gauges[name, tuple(sorted(labels.items()))] = (unit, description, read)

    def value(self, name: str, **labels: str) -> int:
        """Return what was counted under that name and these labels, 0 when nothing was."""
        found = self._counters.get((name, tuple(sorted(labels.items()))))
        return found.value if found else 0

    def total(self, name: str) -> int:
        """Return the sum over all labels of that name."""
        return sum(c.value for c in list(self._counters.values()) if c.name == name)

    def samples(self) -> Iterator[Sample]:
        """Yield every counter, then every gauge, each sorted by name and labels."""
        for (name, labels), counter in sorted(self._counters.copy().items()):
            yield Sample(
                name, labels, counter.value, counter.unit, counter.description, is_gauge=False
            )
        for (name, labels), (unit, description, read) in sorted(
            self._gauges.copy().items(), key=lambda item: item[0]
        ):
            yield Sample(name, labels, read(), unit, description, is_gauge=True)

    def histograms(self) -> Iterator[HistogramSample]:
        """Yield every histogram, sorted by name and labels."""
        for (name, labels), histogram in sorted(
            self._histograms.copy().items(), key=lambda item: item[0]
        ):
            yield HistogramSample(
                name,
                labels,
                histogram.bounds,
                tuple(histogram.counts),
                histogram.total,
                histogram.unit,
                histogram.description,
            )
