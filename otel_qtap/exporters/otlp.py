"""
Spans and log records to an OTLP receiver, through the SDK's own exporters.

The tap queues transactions and Qtap's events; a worker makes records of them and hands
them to the SDK, which encodes, sends and retries within its timeout. A receiver that is
away is no error: what it does not get is counted, and the log says once when it goes and
once when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan

from otel_qtap.counters import CounterSet
from otel_qtap.delivery import DeliveryError, DeliveryQueue, TapFirst, describe_error
from otel_qtap.exporters.events import ObjectPlace, object_attributes, transaction_of
from otel_qtap.exporters.identity import IdentifySpan, SpanIdentifier
from otel_qtap.exporters.logs import DEFAULT_BODY_LIMIT, LogBuilder
from otel_qtap.exporters.resource import ResourceTable
from otel_qtap.exporters.spans import SpanBuilder
from otel_qtap.exporters.transport import (
    Sender,
    Signal,
    TransportOptions,
    make_sender,
    sdk_messages,
)
from otel_qtap.transaction.consumer import Event
from otel_qtap.transaction.model import Request, Response, Transaction

__all__ = ["OtlpExporter"]

_MAX_BATCH_BYTES = 2 * 1024 * 1024  # receivers take 4 MiB by default, and size_of estimates
_Item: TypeAlias = Transaction | Event

_ITEM_OVERHEAD = 4096  # measured: 3 kB in memory and 2 kB on the wire with 20 header fields


class OtlpExporter:
    """Send each transaction as a span and a log record."""

    def __init__(
        self,
        *,
        counters: CounterSet,
        transport: TransportOptions | None = None,
        signals: Collection[Signal] = ("traces", "logs"),
        identify: IdentifySpan | None = None,
        resource_of: ResourceTable | None = None,
        object_of: Callable[[Transaction], ObjectPlace] | None = None,
        trusts_forwarded: bool = True,
        body_limit: int = DEFAULT_BODY_LIMIT,
        name: str = "otlp",
        max_queue_bytes: int = 64 * 1024 * 1024,
        max_batch_items: int = 512,
        max_delay_s: float = 1.0,
        tap_first: TapFirst | None = None,
    ) -> None:
        """
        Without ``transport`` the standard variables say where to; raises ``ValueError``.

        ``identify`` decides trace and span ids; give all exporters the same one.
        ``resource_of`` belongs to this exporter's worker alone. ``object_of`` says where
        an object store has a transaction, if one has all of them. ``name`` tells several
        exporters apart in counters and in the log.
        """
        options = TransportOptions() if transport is None else transport
        resources = ResourceTable() if resource_of is None else resource_of
        self._identify = SpanIdentifier() if identify is None else identify
        self._spans = SpanBuilder(resource_of=resources, trusts_forwarded=trusts_forwarded)
        self._logs = LogBuilder(resource_of=resources, body_limit=body_limit)
        self._object_of = object_of
        self._body_limit = body_limit
        self._outlets = [
            _Outlet(signal, make_sender(signal, options), counters=counters, destination=name)
            for signal in ("traces", "logs")
            if signal in signals
        ]
        self._build_failed = counters.counter(
            "otel_qtap.exporter.build_failed",
            "{item}",
            "Transactions and events that no span or log record could be made of.",
            destination=name,
        )
        self._queue = DeliveryQueue[_Item](
            name,
            self._deliver,
            max_bytes=max_queue_bytes,
            max_batch_bytes=_MAX_BATCH_BYTES,
            max_batch_items=max_batch_items,
            max_delay_s=max_delay_s,
            counters=counters,
            size_of=self._size_of,
            tap_first=tap_first,
        )

    def consume(self, transaction: Transaction) -> None:
        """Queue ``transaction``."""
        self._queue.put(transaction)

    def consume_event(self, event: Event) -> None:
        """Queue ``event``, which becomes a log record."""
        self._queue.put(event)

    def flush(self, deadline_s: float) -> bool:
        """Return whether the receiver took everything consumed before."""
        return self._queue.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Send what waits and stop; return whether the receiver took all of it."""
        has_arrived = self._queue.close(deadline_s)
        for outlet in self._outlets:
            outlet.sender.shutdown()  # also ends a retry that the deadline cut off
        return has_arrived

    def _deliver(self, batch: list[_Item]) -> None:
        spans: list[ReadableSpan] = []
        records: list[ReadableLogRecord] = []
        failure: Exception | None = None
        failures = 0
        for item in batch:
            try:
                if isinstance(item, Transaction):
                    span, record = self._build(item)
                    spans.append(span)
                else:
                    record = self._build_event(item)
            except Exception as error:  # one transaction must not cost the others
                self._build_failed.add()
                failure = error
                failures += 1
            else:
                records.append(record)
        by_signal: dict[Signal, Sequence[Any]] = {"traces": spans, "logs": records}
        problems = [
            problem
            for outlet in self._outlets
            if (problem := outlet.send(by_signal[outlet.signal])) is not None
        ]
        if problems:
            raise DeliveryError("; ".join(problems))
        if failure is not None:
            raise DeliveryError(
                f"no record could be made: {describe_error(failure)}",
                undelivered=failures,
            )

    def _build(self, transaction: Transaction) -> tuple[ReadableSpan, ReadableLogRecord]:
        identity = self._identify(transaction)
        attributes = self._spans.attributes(transaction)
        if self._object_of is not None:
            attributes |= object_attributes(self._object_of(transaction))
        span = self._spans.build(transaction, identity, attributes)
        return span, self._logs.build(transaction, identity, attributes)

    def _build_event(self, event: Event) -> ReadableLogRecord:
        transaction = transaction_of(event)
        identity = None if transaction is None else self._identify(transaction)
        return self._logs.build_event(event, identity)

    def _size_of(self, item: _Item) -> int:
        """Estimate what ``item`` holds in memory, or takes on the wire if that is more."""
        if not isinstance(item, Transaction):
            return item.held_bytes
        size = _ITEM_OVERHEAD
        messages: tuple[Request | Response | None, ...] = (item.request, item.response)
        for message in messages:
            if message is not None:
                captured = len(message.body.content)
                if captured and message.header("content-encoding"):
                    captured = max(captured, self._body_limit)  # it grows when it is decoded
                size += message.head_size + captured
        return size


class _Outlet:
    """One signal's way to the receiver, with its own account."""

    def __init__(
        self, signal: Signal, sender: Sender, *, counters: CounterSet, destination: str
    ) -> None:
        self.signal: Signal = signal
        self.sender = sender
        labels = {"signal": signal, "destination": destination}
        self._exported = counters.counter(
            "otel_qtap.exporter.exported", "{item}", "What the receiver took.", **labels
        )
        self._failed = counters.counter(
            "otel_qtap.exporter.failed", "{item}", "What the receiver did not take.", **labels
        )

    def send(self, batch: Sequence[Any]) -> str | None:
        """Send ``batch`` and count it; return what went wrong, ``None`` if nothing did."""
        if not batch:
            return None
        sdk_messages.clear()
        try:
            # SpanExportResult and LogRecordExportResult have this name in common.
            has_arrived = self.sender.export(batch).name == "SUCCESS"
            problem = sdk_messages.first or "the receiver did not take it"
        except Exception as error:  # the other signal goes on
            has_arrived = False
            problem = describe_error(error)
        if has_arrived:
            self._exported.add(len(batch))
            return None
        self._failed.add(len(batch))
        return f"{self.signal}: {problem}"
