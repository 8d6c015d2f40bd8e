"""When the tap sleeps, gives way and hurries."""

from __future__ import annotations

import os
import threading
import time

import pytest

from otel_qtap.pace import Pace

RING = 1024 * 1024


class Thread:
    """Stands for the thread whose priority and sleep are watched."""

    def __init__(self, monkeypatch, *, may_renice: bool = True) -> None:
        self.nice = 0
        self.slept: list[float] = []
        self._may_renice = may_renice
        monkeypatch.setattr(time, "sleep", self.slept.append)
        monkeypatch.setattr(os, "getpriority", lambda *_: self.nice)
        monkeypatch.setattr(os, "setpriority", self._renice)

    def _renice(self, which: int, thread: int, nice: int) -> None:
        assert (which, thread) == (os.PRIO_PROCESS, threading.get_native_id())
        if not self._may_renice:
            raise PermissionError
        self.nice = nice


@pytest.fixture
def thread(monkeypatch) -> Thread:
    return Thread(monkeypatch)


def test_an_idle_tap_sleeps_longer_and_longer(thread, counters) -> None:
    """Up to a bound, and short again as soon as there was something to do."""
    pace = Pace(RING, counters, may_hurry=True)
    for _ in range(20):
        pace.rest(0, worked=False)
    pace.rest(0, worked=True)

    assert thread.slept[:20] == sorted(thread.slept[:20])
    assert thread.slept[19] == 0.05
    assert thread.slept[20] == 0.002


def test_a_tap_with_much_to_do_does_not_sleep(thread, counters) -> None:
    """What waits in the ring is more important."""
    Pace(RING, counters, may_hurry=True).rest(64 * 1024, worked=True)

    assert thread.slept == []


def test_a_filling_ring_makes_the_tap_hurry_until_it_is_nearly_empty(thread, counters) -> None:
    """In between nothing changes, so that it does not flutter; hurries are counted."""
    pace = Pace(RING, counters, may_hurry=True)
    above, below = Pace.HURRY_ABOVE, Pace.RELAX_BELOW
    between = (above + below) / 2
    seen = []
    for share in (between, above * 1.1, 0.9, between, below * 0.9, between, above * 1.1):
        pace.rest(int(RING * share), worked=True)
        seen.append(thread.nice)

    assert 0 < below < above < 0.5
    assert seen == [0, -5, -5, -5, 0, 0, -5]
    assert counters.value("otel_qtap.receiver.hurries") == 2


def test_a_priority_that_was_chosen_comes_back(thread, counters) -> None:
    """And one that is higher than that of a hurry is kept."""
    thread.nice = 10
    pace = Pace(RING, counters, may_hurry=True)
    pace.rest(RING // 2, worked=True)
    assert thread.nice == -5
    pace.rest(0, worked=True)
    assert thread.nice == 10

    thread.nice = -15
    pace.rest(RING // 2, worked=True)
    assert thread.nice == -15


def test_a_tap_that_may_not_hurry_does_not(thread, counters) -> None:
    """``--no-hurry``."""
    Pace(RING, counters, may_hurry=False).rest(RING, worked=True)

    assert thread.nice == 0
    assert counters.value("otel_qtap.receiver.hurries") == 0


def test_a_tap_without_the_privilege_goes_on_as_it_is(monkeypatch, counters) -> None:
    """It asks once."""
    thread = Thread(monkeypatch, may_renice=False)
    pace = Pace(RING, counters, may_hurry=True)
    for _ in range(3):
        pace.rest(RING, worked=True)

    assert thread.nice == 0
    assert counters.value("otel_qtap.receiver.hurries") == 0


def test_destinations_wait_while_the_tap_is_behind(thread, counters) -> None:
    """Capture comes before delivery."""
    pace = Pace(RING, counters, may_hurry=True)
    seen = []
    for share in (Pace.BEHIND_ABOVE / 2, Pace.BEHIND_ABOVE * 2, Pace.BEHIND_ABOVE / 2):
        pace.rest(int(RING * share), worked=True)
        seen.append(pace.tap_first.is_behind)

    assert seen == [False, True, False]
