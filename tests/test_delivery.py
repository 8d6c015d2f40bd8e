"""The queue between the tap and a destination: bounded, honest, and never in the way."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from otel_qtap.delivery import DeliveryError, DeliveryQueue, describe_error

SLOW_S = 30.0


@pytest.fixture
def make_queue(counters):
    """Make queues of strings, as large as they are long; all are closed afterwards."""
    queues = []

    def make(deliver, **changes):
        options = {
            "max_bytes": 100,
            "max_batch_bytes": 50,
            "max_batch_items": 10,
            "max_delay_s": 0.01,
            "counters": counters,
            "size_of": len,
        }
        queues.append(DeliveryQueue("test", deliver, **(options | changes)))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close(0)


class Gate:
    """A destination that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.taken: list[str] = []

    def deliver(self, batch: list[str]) -> None:
        self.reached.set()
        assert self.opened.wait(SLOW_S)
        self.taken += batch


def dropped(counters, reason: str) -> int:
    return counters.value("otel_qtap.delivery.dropped", destination="test", reason=reason)


def test_everything_arrives_once_and_in_order(make_queue, counters) -> None:
    """What is put arrives in order, is counted as delivered, and leaves the queue empty."""
    taken: list[str] = []
    queue = make_queue(taken.extend, max_bytes=100_000)
    items = [f"item {number}" for number in range(1000)]
    for item in items:
        queue.put(item)

    assert queue.flush(SLOW_S)
    assert taken == items
    assert counters.value("otel_qtap.delivery.delivered", destination="test") == 1000
    assert counters.total("otel_qtap.delivery.dropped") == 0
    assert queue.size_bytes == 0


def test_batches_keep_both_bounds(make_queue) -> None:
    """No batch has more items or bytes than allowed, but one larger item still goes, alone."""
    gate = Gate()
    batches: list[list[str]] = []
    queue = make_queue(lambda batch: (gate.deliver(batch), batches.append(batch)), max_bytes=10_000)
    queue.put("first")
    assert gate.reached.wait(SLOW_S)
    for item in ["x" * 20] * 3 + ["y" * 60] + ["z"] * 12:
        queue.put(item)
    gate.opened.set()

    assert queue.flush(SLOW_S)
    assert [len(batch) for batch in batches] == [1, 2, 1, 1, 10, 2]
    assert batches[3] == ["y" * 60]


def test_a_batch_waits_for_company_but_not_long(make_queue) -> None:
    """A lone item goes after the delay; a full batch goes at once, however long the delay."""
    arrived = threading.Event()
    queue = make_queue(lambda _: arrived.set(), max_delay_s=0.05)
    queue.put("alone")
    assert arrived.wait(SLOW_S)

    arrived.clear()
    patient = make_queue(lambda _: arrived.set(), max_delay_s=SLOW_S, max_batch_items=3)
    for item in "abc":
        patient.put(item)
    assert arrived.wait(SLOW_S / 2)


def test_put_never_waits_and_counts_what_does_not_fit(make_queue, counters) -> None:
    """Behind a blocked destination the queue fills to its bound, batch in delivery included."""
    gate = Gate()
    queue = make_queue(gate.deliver)
    started = time.monotonic()
    for _ in range(15):
        queue.put("x" * 10)
    queue.put("y" * 101)

    assert time.monotonic() - started < 5
    assert queue.size_bytes == 100
    assert dropped(counters, "queue_full") == 5
    assert dropped(counters, "too_large") == 1
    (gauge,) = (s for s in counters.samples() if s.name == "otel_qtap.delivery.queue.size")
    assert (gauge.value, gauge.unit) == (100, "By")
    gate.opened.set()
    assert queue.flush(SLOW_S)
    assert len(gate.taken) == 10


def test_failures_are_counted_and_logged_once_per_change(make_queue, counters, caplog) -> None:
    """A destination that fails costs its batches and two lines in the log, not its worker."""
    error: list[Exception] = [DeliveryError("the receiver is away")]

    def deliver(batch: list[str]) -> None:
        if error:
            raise error[0]

    queue = make_queue(deliver)
    with caplog.at_level(logging.INFO, logger="otel_qtap"):
        for _ in range(3):
            queue.put("lost")
            assert not queue.flush(SLOW_S)
        error.clear()
        for _ in range(2):
            queue.put("kept")
            assert queue.flush(SLOW_S)

    assert dropped(counters, "failed") == 3
    assert counters.value("otel_qtap.delivery.delivered", destination="test") == 2
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "test: delivery fails (the receiver is away); what is lost meanwhile is counted",
        "test: delivery works again",
    ]


def test_part_of_a_batch_may_fail(make_queue, counters) -> None:
    """Only what ``DeliveryError.undelivered`` says is lost."""

    def deliver(batch: list[str]) -> None:
        raise DeliveryError("some of it", undelivered=1)

    queue = make_queue(deliver, max_delay_s=SLOW_S, max_batch_items=3)
    for item in "abc":
        queue.put(item)
    assert not queue.flush(SLOW_S)
    assert dropped(counters, "failed") == 1
    assert counters.value("otel_qtap.delivery.delivered", destination="test") == 2


def test_unknown_errors_do_not_tell_what_they_quote(make_queue, caplog) -> None:
    """The text of an error that is not ours may hold a payload: its kind and place are told."""

    def deliver(batch: list[str]) -> None:
        raise ValueError(f"cannot send {batch}")

    queue = make_queue(deliver)
    queue.put("password=hunter2")
    assert not queue.flush(SLOW_S)
    assert "hunter2" not in caplog.text
    assert "ValueError at test_delivery.py:" in caplog.text


def test_flush_tells_the_truth_about_time(make_queue) -> None:
    """A flush that the deadline ends says so; once all has arrived the answer is yes."""
    gate = Gate()
    queue = make_queue(gate.deliver)
    assert queue.flush(0)
    queue.put("slow")
    assert not queue.flush(0.05)
    gate.opened.set()
    assert queue.flush(SLOW_S)


def test_flush_does_not_wait_for_the_delay(make_queue) -> None:
    """A flush sends what waits for a full batch."""
    taken: list[str] = []
    queue = make_queue(taken.extend, max_delay_s=SLOW_S)
    for round_ in range(3):
        queue.put(str(round_))
        assert queue.flush(SLOW_S / 2)
    assert taken == ["0", "1", "2"]


def test_close_drains_then_refuses(make_queue, counters) -> None:
    """What waits at close still goes out; what comes later is counted; the worker is gone."""
    taken: list[str] = []
    queue = make_queue(taken.extend, max_delay_s=SLOW_S)
    queue.put("in time")
    assert queue.close(SLOW_S / 2)
    queue.put("late")

    assert taken == ["in time"]
    assert dropped(counters, "closed") == 1
    assert not any(thread.name == "deliver-test" for thread in threading.enumerate())


def test_close_gives_up_and_counts_the_rest(make_queue, counters) -> None:
    """After the deadline everything undelivered is counted once, the stuck batch included."""
    gate = Gate()
    queue = make_queue(gate.deliver, max_batch_items=1)
    for item in "abc":
        queue.put(item)
    assert gate.reached.wait(SLOW_S)
    assert not queue.close(0.05)
    gate.opened.set()
    assert not queue.close(0.05)

    assert dropped(counters, "closed") == 3
    assert counters.value("otel_qtap.delivery.delivered", destination="test") == 0


def test_every_item_is_delivered_or_counted(make_queue, counters) -> None:
    """Put as fast as possible into a small queue: delivered and dropped add up to what was put."""
    queue = make_queue(lambda _: time.sleep(0.0001), max_bytes=200)
    for _ in range(20_000):
        queue.put("x" * 10)
    queue.close(SLOW_S)
    delivered = counters.value("otel_qtap.delivery.delivered", destination="test")
    assert delivered + counters.total("otel_qtap.delivery.dropped") == 20_000
    assert delivered > 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(DeliveryError("our words"), "our words", id="ours"),
        pytest.param(BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: Broken pipe", id="os"),
        pytest.param(KeyError("secret"), "KeyError", id="anything-else"),
    ],
)
def test_describe_error(error, text) -> None:
    """Only texts that cannot quote data are shown."""
    assert describe_error(error) == text
