"""
The ``stdout`` stores: transactions in their ``format``, and events as lines of JSON.

Written through a queue, so a reader that is slow, gone or stopped costs transactions
(counted) and never the tap.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from operator import itemgetter
from typing import Any, BinaryIO, TypeAlias

from otel_qtap.config.capture import CaptureFormat
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import DeliveryError, DeliveryQueue, TapFirst, describe_error
from otel_qtap.stores.artifact import held_bytes
from otel_qtap.stores.json_record import json_line, render_json, rfc3339
from otel_qtap.stores.text import render_text
from otel_qtap.transaction.consumer import Event
from otel_qtap.transaction.model import Transaction

__all__ = ["StdoutEventStore", "StdoutStore", "StdoutWriter"]


_Block: TypeAlias = tuple[Any, Callable[[Any], str], int]
"""What is to be written in one piece: a thing, what makes text of it, and its size."""


class StdoutWriter:
    """
    One stream that several plugins and stores write whole blocks to.

    A stream with a file descriptor is written through that, past Python's buffer: its
    lock, held by a blocked daemon thread, would abort the interpreter when it exits.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        counters: CounterSet,
        name: str = "stdout",
        max_bytes: int = 16 * 1024 * 1024,
        max_delay_s: float = 0.05,
        tap_first: TapFirst | None = None,
    ) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._queue = DeliveryQueue[_Block](
            name,
            self._write_batch,
            max_bytes=max_bytes,
            max_batch_bytes=256 * 1024,
            max_batch_items=256,
            max_delay_s=max_delay_s,
            counters=counters,
            size_of=itemgetter(2),
            tap_first=tap_first,
        )

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def put(self, transaction: Transaction, render: Callable[[Transaction], str]) -> None:
        """Queue what ``render``, on the worker, makes of ``transaction``, line end included."""
        self._queue.put((transaction, render, held_bytes(transaction)))

    def put_event(self, event: Event, render: Callable[[Event], str]) -> None:
        """Queue what ``render``, on the worker, makes of ``event``, line end included."""
        self._queue.put((event, render, event.held_bytes))

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything put before was written."""
        return self._queue.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Write what waits and stop; the stream stays open."""
        return self._queue.close(deadline_s)

    def _write_batch(self, batch: list[_Block]) -> None:
        blocks: list[str] = []
        failure: Exception | None = None
        for item, render, _ in batch:
            try:
                blocks.append(render(item))
            except Exception as error:  # one block must not cost the others
                failure = error
        self._write("".join(blocks).encode("utf-8", "backslashreplace"))
        if failure is not None:
            raise DeliveryError(
                f"not writable: {describe_error(failure)}", undelivered=len(batch) - len(blocks)
            )

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(data)
            self._stream.flush()
            return
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares the descriptor set O_NONBLOCK
                select.select([], [self._descriptor], [])


class StdoutStore:
    """Write each transaction as text or JSON, as its ``format`` says."""

    def __init__(self, writer: StdoutWriter) -> None:
        self._writer = writer

    def consume(self, transaction: Transaction) -> None:
        """Queue ``transaction`` for writing."""
        self._writer.put(transaction, _RENDERERS[transaction.format])

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before was written."""
        return self._writer.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Write what waits and stop."""
        return self._writer.close(deadline_s)


class StdoutEventStore:
    """
    Write each event as one line of JSON.

    Qtap's words stand around it: the message of its log line, and ``event.type`` and
    ``event`` as its log records have them.
    """

    def __init__(self, writer: StdoutWriter) -> None:
        self._writer = writer

    def consume_event(self, event: Event) -> None:
        """Queue ``event`` for writing."""
        self._writer.put_event(event, _render_event)


def _render_event(event: Event) -> str:
    line = json_line(
        {
            "level": "info",
            "ts": rfc3339(event.timestamp_ns),
            "msg": "event store submission",
            "event.type": event.event_type,
            "event": event.record(),
        }
    )
    return line + "\n"


_RENDERERS: dict[CaptureFormat, Callable[[Transaction], str]] = {
    CaptureFormat.TEXT: lambda transaction: render_text(transaction) + "\n",
    CaptureFormat.JSON: lambda transaction: render_json(transaction) + "\n",
}


def _descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError):  # an in-memory stream
        return None
