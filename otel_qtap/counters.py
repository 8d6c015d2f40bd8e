"""
Counters that say what the agent did and, above all, what it could not do.

Every queue, buffer and table of the agent has a bound; whatever does not fit is
counted here under a reason, and ``/metrics`` shows it. This is the lowest layer:
it imports nothing of ours, and every other layer may count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Counter", "CounterSet", "Sample"]


class Sample(NamedTuple):
    """One number as ``/metrics`` prints it."""

    name: str
    """OpenTelemetry style, dots between words: ``otel_qtap.receiver.lost``."""
    labels: tuple[tuple[str, str], ...]
    value: float
    unit: str
    description: str
    is_gauge: bool


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


class CounterSet:
    """
    All counters of one agent.

    ``counter`` returns the same object for the same name and labels, so two
    components that count the same thing count together.
    """

    def __init__(self) -> None:
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], Counter] = {}
        self._gauges: dict[
            tuple[str, tuple[tuple[str, str], ...]], tuple[str, str, Callable[[], float]]
        ] = {}

    def counter(self, name: str, unit: str, description: str, **labels: str) -> Counter:
        """Return the counter of that name and these labels; ``unit`` as in UCUM (``{event}``)."""
        key = (name, tuple(sorted(labels.items())))
        found = self._counters.get(key)
        if found is None:
            found = self._counters[key] = Counter(name, unit, description, key[1])
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
        """Yield everything, sorted by name and labels."""
        for (name, labels), counter in sorted(self._counters.copy().items()):
            yield Sample(
                name, labels, counter.value, counter.unit, counter.description, is_gauge=False
            )
        for (name, labels), (unit, description, read) in sorted(
            self._gauges.copy().items(), key=lambda item: item[0]
        ):
            yield Sample(name, labels, read(), unit, description, is_gauge=True)
