"""
The queue between the tap and one destination: the only place where their threads meet.

The tap puts and goes on; a worker batches and calls ``deliver``, which may be slow,
blocked or failing. Nothing is lost silently: what goes in is later either counted as
delivered or counted as dropped with the reason.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from otel_qtap.counters import CounterSet

__all__ = ["DeliveryError", "DeliveryQueue", "TapFirst", "describe_error"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_TAP_FIRST_PAUSE_S = 0.005


class DeliveryError(Exception):
    """
    A batch, or ``undelivered`` items of it, did not arrive.

    Its text is shown to people, so it never quotes what was to be delivered.
    """

    def __init__(self, message: str, *, undelivered: int | None = None) -> None:
        super().__init__(message)
        self.undelivered = undelivered


class TapFirst:
    """
    The rule that capture comes before delivery.

    All threads of a Python process share one interpreter. While the tap is behind it
    sets ``is_behind``, and the workers of all queues wait between batches: what cannot
    be delivered meanwhile waits in bounded queues that count, what the tap cannot take
    from the kernel is lost.
    """

    __slots__ = ("is_behind",)

    def __init__(self) -> None:
        self.is_behind = False


class DeliveryQueue(Generic[T]):
    """
    Items on their way to one destination, bounded in bytes.

    ``put`` is for one thread and takes no lock on its usual path: each of the running
    totals below has one writer, and the deque does the rest. Bytes leave the bound
    only when they are delivered or given up, so the batch in the worker's hands is
    inside it. ``deliver`` raises for what did not arrive; who wants retries makes
    them there.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[list[T]], None],
        *,
        max_bytes: int,
        max_batch_bytes: int,
        max_batch_items: int,
        max_delay_s: float,
        counters: CounterSet,
        size_of: Callable[[T], int],
        tap_first: TapFirst | None = None,
    ) -> None:
        self._name = name
        self._tap_first = tap_first or TapFirst()
        self._deliver = deliver
        self._max_bytes = max_bytes
        self._max_batch_bytes = max_batch_bytes
        self._max_batch_items = max_batch_items
        self._max_delay_s = max_delay_s
        self._size_of = size_of
        self._items: deque[tuple[T, int]] = deque()
        self._put_items = 0  # written by the tap
        self._put_bytes = 0
        self._finished_items = 0  # written by the worker
        self._finished_bytes = 0
        self._failed_items = 0
        self._is_failing = False
        self._hurries = False
        self._closing = False
        self._abandoned = False
        self._something_put = threading.Event()
        self._batch_ready = threading.Event()
        self._progress = threading.Condition()
        self._delivered = counters.counter(
            "otel_qtap.delivery.delivered", "{item}", "What a destination took.", destination=name
        )
        self._dropped = {
            reason: counters.counter(
                "otel_qtap.delivery.dropped",
                "{item}",
                "What never reached its destination.",
                destination=name,
                reason=reason,
            )
            for reason in ("queue_full", "too_large", "failed", "closed")
        }
        counters.gauge(
            "otel_qtap.delivery.queue.size",
            "By",
            "What waits for a destination, estimated.",
            lambda: self.size_bytes,
            destination=name,
        )
        self._worker = threading.Thread(target=self._run, name=f"deliver-{name}", daemon=True)
        self._worker.start()

    @property
    def size_bytes(self) -> int:
        """What waits or is being delivered, by ``size_of``."""
        return self._put_bytes - self._finished_bytes

    def put(self, item: T) -> None:
        """Queue ``item``, or count it as dropped; returns at once and never raises."""
        size = self._size_of(item)
        waiting_bytes = self._put_bytes - self._finished_bytes
        if self._closing:
            self._dropped["closed"].add()
        elif size > self._max_bytes:
            self._dropped["too_large"].add()
        elif waiting_bytes + size > self._max_bytes:
            self._dropped["queue_full"].add()
        else:
            self._put_bytes += size
            self._put_items += 1
            self._items.append((item, size))
            if not self._something_put.is_set():
                self._something_put.set()
            if (
                len(self._items) >= self._max_batch_items
                or waiting_bytes + size >= self._max_batch_bytes
            ) and not self._batch_ready.is_set():
                self._batch_ready.set()

    def flush(self, deadline_s: float) -> bool:
        """
        Return whether all that was put before arrived, waiting ``deadline_s`` at most.

        A batch that fails while it waits makes the answer ``False``.
        """
        target = self._put_items
        failed_before = self._failed_items
        self._hurry()
        with self._progress:
            is_over = self._progress.wait_for(
                lambda: self._finished_items >= target or not self._worker.is_alive(), deadline_s
            )
            return (
                is_over
                and self._finished_items >= target
                and self._failed_items == failed_before
                and not self._abandoned
            )

    def close(self, deadline_s: float) -> bool:
        """
        Deliver what waits, then stop; return whether all of it arrived.

        After ``deadline_s`` the rest is counted as dropped and given up; a worker that
        is stuck in ``deliver`` keeps no process alive.
        """
        if self._abandoned:
            return False
        self._closing = True
        started = time.monotonic()
        has_arrived = self.flush(deadline_s)
        self._hurry()
        self._worker.join(max(0.0, deadline_s - (time.monotonic() - started)))
        if self._worker.is_alive():
            with self._progress:
                self._abandoned = True
                left = self._put_items - self._finished_items
            self._dropped["closed"].add(left)
            if left:
                _logger.warning("%s: closed with %d undelivered items", self._name, left)
        return has_arrived

    def _hurry(self) -> None:
        """Make the worker deliver what waits now, without waiting for a full batch."""
        self._hurries = True
        self._batch_ready.set()
        self._something_put.set()

    def _run(self) -> None:
        while not self._abandoned and (self._items or not self._closing):
            self._something_put.wait()
            self._something_put.clear()
            if not (self._closing or self._hurries):
                self._batch_ready.wait(self._max_delay_s)
            self._hurries = False
            self._batch_ready.clear()
            while self._items and not self._abandoned:
                while self._tap_first.is_behind and not (self._closing or self._hurries):
                    time.sleep(_TAP_FIRST_PAUSE_S)
                self._deliver_batch(*self._next_batch())

    def _next_batch(self) -> tuple[list[T], int]:
        batch: list[T] = []
        batch_bytes = 0
        while self._items and len(batch) < self._max_batch_items:
            if batch and batch_bytes + self._items[0][1] > self._max_batch_bytes:
                break
            item, size = self._items.popleft()
            batch.append(item)
            batch_bytes += size
        return batch, batch_bytes

    def _deliver_batch(self, batch: list[T], batch_bytes: int) -> None:
        undelivered = 0
        error: Exception | None = None
        try:
            self._deliver(batch)
        except DeliveryError as raised:
            error = raised
            undelivered = len(batch) if raised.undelivered is None else raised.undelivered
        except Exception as raised:  # a destination must not end its worker
            error = raised
            undelivered = len(batch)
        self._log_change(error)
        with self._progress:
            if self._abandoned:  # close() has counted this batch already
                return
            self._finished_items += len(batch)
            self._finished_bytes += batch_bytes
            self._failed_items += undelivered
            self._delivered.add(len(batch) - undelivered)
            self._dropped["failed"].add(undelivered)
            self._progress.notify_all()

    def _log_change(self, error: Exception | None) -> None:
        if error is not None and not self._is_failing:
            _logger.warning(
                "%s: delivery fails (%s); what is lost meanwhile is counted",
                self._name,
                describe_error(error),
            )
        elif error is None and self._is_failing:
            _logger.warning("%s: delivery works again", self._name)
        self._is_failing = error is not None


def describe_error(error: BaseException) -> str:
    """
    Return what happened and where, without the text of the error where it may quote data.

    Only our own errors and those of the operating system have texts known to be safe.
    """
    if isinstance(error, DeliveryError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
