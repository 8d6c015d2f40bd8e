"""
The ``stdout`` store: every transaction on the standard output, in its ``format``.

Written through a queue, so a reader that is slow, gone or stopped costs transactions
(counted) and never the tap.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import BinaryIO, TypeAlias

from otel_qtap.config.capture import CaptureFormat
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import DeliveryError, DeliveryQueue, TapFirst, describe_error
from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.text import render_text
from otel_qtap.transaction.model import Transaction

__all__ = ["Render", "StdoutStore", "StdoutWriter"]

Render: TypeAlias = Callable[[Transaction], str]
"""Makes the text to write, line end included; runs on the worker."""

_ITEM_OVERHEAD = 4096  # measured: 3 kB in memory with 20 header fields and no bodies


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
        self._queue = DeliveryQueue[tuple[Transaction, Render]](
            name,
            self._write_batch,
            max_bytes=max_bytes,
            max_batch_bytes=256 * 1024,
            max_batch_items=256,
            max_delay_s=max_delay_s,
            counters=counters,
            size_of=_size_of,
            tap_first=tap_first,
        )

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def put(self, transaction: Transaction, render: Render) -> None:
        """Queue what ``render`` makes of ``transaction``."""
        self._queue.put((transaction, render))

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything put before was written."""
        return self._queue.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Write what waits and stop; the stream stays open."""
        return self._queue.close(deadline_s)

    def _write_batch(self, batch: list[tuple[Transaction, Render]]) -> None:
        blocks: list[str] = []
        failure: Exception | None = None
        for transaction, render in batch:
            try:
                blocks.append(render(transaction))
            except Exception as error:  # one transaction must not cost the others
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


_RENDERERS: dict[CaptureFormat, Render] = {
    CaptureFormat.TEXT: lambda transaction: render_text(transaction) + "\n",
    CaptureFormat.JSON: lambda transaction: render_json(transaction) + "\n",
}


def _size_of(item: tuple[Transaction, Render]) -> int:
    request, response = item[0].request, item[0].response
    size = _ITEM_OVERHEAD + len(request.body.content) + request.head_size
    if response is not None:
        size += len(response.body.content) + response.head_size
    return size


def _descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError):  # an in-memory stream
        return None
