"""
The ``logger`` plugin: each transaction as a line of the agent's own log, at level debug.

For looking at what a stack sees without touching its stores. The lines go through a
queue like everything else: a log that nobody reads must not stop the tap.
"""

from __future__ import annotations

import logging

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import DeliveryQueue, TapFirst
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.stores.artifact import held_bytes
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import escape_line, readable_text

__all__ = ["Logger"]

_logger = logging.getLogger(__name__)


class Logger:
    """Log each transaction, redacted; does nothing while the log is not at level debug."""

    def __init__(
        self,
        *,
        redactor: Redactor,
        counters: CounterSet,
        name: str = "logger",
        max_bytes: int = 4 * 1024 * 1024,
        tap_first: TapFirst | None = None,
    ) -> None:
        self._redactor = redactor
        self._queue = DeliveryQueue[Transaction](
            name,
            _log,
            max_bytes=max_bytes,
            max_batch_bytes=max_bytes,
            max_batch_items=256,
            max_delay_s=0.2,
            counters=counters,
            size_of=held_bytes,
            tap_first=tap_first,
        )

    def consume(self, transaction: Transaction) -> None:
        """Queue the line for ``transaction``."""
        if _logger.isEnabledFor(logging.DEBUG):
            redacted = self._redactor.redact(transaction)
            self._queue.put(redacted.reduced_to(CaptureLevel.SUMMARY))

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before was logged."""
        return self._queue.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Log what waits and stop."""
        return self._queue.close(deadline_s)


def _log(batch: list[Transaction]) -> None:
    for transaction in batch:
        _logger.debug(
            "HTTP transaction: %s %s %s %s %s, %.1f ms, request %s on connection %s",
            _line(transaction.process.name),
            transaction.direction.value,
            _line(transaction.request.method),
            _line(transaction.url),
            "-" if transaction.response is None else transaction.response.status,
            transaction.timings.duration_ns / 1e6,
            transaction.request_id,
            transaction.connection_id,
        )


def _line(value: str) -> str:
    return escape_line(readable_text(value))
