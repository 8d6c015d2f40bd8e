"""
Quantiles of durations in bounded memory.

The first values are kept as they are, so that a few requests give exact answers. After
that each value goes into a bucket whose width is at most 1/64 of its lower end (the idea
of HdrHistogram), which puts the middle of a bucket within 0.8 % of every value in it.
"""

from __future__ import annotations

from math import ceil

__all__ = ["EXACT_VALUES", "Quantiles"]

EXACT_VALUES = 128
_BITS = 7  # of a value that tell its bucket; the first is always 1
_MASK = (1 << _BITS) - 1


class Quantiles:
    """
    Takes durations in nanoseconds and says how they are spread.

    One thread records, others may ask meanwhile. It holds ``EXACT_VALUES`` numbers or one
    for each bucket in use: 64 for each doubling, 640 from 1 ms to 1 s.
    """

    __slots__ = ("_buckets", "_exact", "count", "maximum")

    def __init__(self) -> None:
        self._exact: list[int] | None = []
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.maximum = 0

    def record(self, value: int) -> None:
        """Take a value; less than 0 counts as 0."""
        if value > self.maximum:
            self.maximum = value
        elif value < 0:
            value = 0
        self.count += 1
        if self._exact is None:
            self._add(_index(value), 1)
        else:
            self._exact.append(value)
            if len(self._exact) > EXACT_VALUES:
                self._stop_being_exact()

    def merge(self, other: Quantiles) -> None:
        """Take every value that ``other`` was given."""
        self.maximum = max(self.maximum, other.maximum)
        exact = other._exact
        if self._exact is not None and exact is not None:
            self._exact += exact
            self.count = len(self._exact)
            if self.count > EXACT_VALUES:
                self._stop_being_exact()
            return
        self._stop_being_exact()
        if exact is None:
            for index, count in other._buckets.copy().items():
                self._add(index, count)
        else:
            for value in exact.copy():
                self._add(_index(value), 1)
        self.count = sum(self._buckets.values())

    def at(self, fraction: float) -> int:
        """
        Return the smallest value that at least ``fraction`` of all do not exceed.

        In nanoseconds; 0 when there are none.
        """
        exact = self._exact
        if exact is not None:
            values = sorted(exact)
            return values[_rank(fraction, len(values)) - 1] if values else 0
        buckets = sorted(self._buckets.copy().items())
        rank = _rank(fraction, sum(count for _, count in buckets))
        for index, count in buckets:
            rank -= count
            if rank <= 0:
                return min(_middle(index), self.maximum)
        return self.maximum

    def _stop_being_exact(self) -> None:
        exact = self._exact
        if exact is not None:
            for value in exact:
                self._add(_index(value), 1)
            self._exact = None  # only now: whoever asks meanwhile finds all of them

    def _add(self, index: int, count: int) -> None:
        self._buckets[index] = self._buckets.get(index, 0) + count


def _index(value: int) -> int:
    shift = value.bit_length() - _BITS
    return (shift << _BITS) + (value >> shift) if shift > 0 else value


def _rank(fraction: float, count: int) -> int:
    return max(1, ceil(fraction * count))


def _middle(index: int) -> int:
    shift = index >> _BITS
    return ((index & _MASK) << shift) + ((1 << shift) >> 1)
