"""What turns the kernel's clock into the world's."""

from __future__ import annotations

import time

from otel_qtap.clock import epoch_offset_ns


def test_the_offset_turns_the_kernels_clock_into_the_worlds() -> None:
    """To well under a millisecond, where nobody adjusts the clock meanwhile."""
    offset = epoch_offset_ns()

    assert abs(time.monotonic_ns() + offset - time.time_ns()) < 50_000_000
    assert abs(epoch_offset_ns() - offset) < 50_000_000


def test_the_offset_is_that_of_the_least_disturbed_reading(monkeypatch) -> None:
    """One reading during which the thread was paused does not spoil it."""
    monotonic = iter([0, 1000, 10, 20, 2000, 9000, 10000, 19000, 20000, 29000])
    epoch = iter([1, 115, 3, 4, 5])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: next(epoch))

    assert epoch_offset_ns() == 100
