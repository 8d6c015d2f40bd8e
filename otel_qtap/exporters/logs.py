"""
A transaction as a log record: the data of its span, and the payload that a span cannot carry.

The facts are attributes; the body is one line for people. Severity follows what an
operator wants to be woken for: 5xx and transactions that got no whole answer are
errors, 4xx and clients that went away are warnings. That is the same for both sides
of a proxy, unlike the status of a span.

The SDK's log classes still live in private modules; this is the one place that
imports them to make records.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from otel_qtap.exporters import semconv
from otel_qtap.exporters.events import EVENT_NAME_PREFIX, event_attributes, subject_of
from otel_qtap.exporters.identity import SpanIdentity
from otel_qtap.exporters.resource import Subject
from otel_qtap.exporters.spans import SCOPE, Attributes, end_ns, error_type
from otel_qtap.transaction.consumer import Event
from otel_qtap.transaction.model import Ending, Request, Response, Transaction
from otel_qtap.transaction.readable import (
    escape_line,
    is_textual,
    readable_body,
    readable_text,
)

__all__ = ["DEFAULT_BODY_LIMIT", "LogBuilder"]

DEFAULT_BODY_LIMIT = 64 * 1024
"""Bytes of each body in a record: what log back ends accept for one attribute."""


class LogBuilder:
    """Make log records."""

    def __init__(
        self,
        *,
        resource_of: Callable[[Subject], Resource],
        body_limit: int = DEFAULT_BODY_LIMIT,
    ) -> None:
        self._resource_of = resource_of
        self._body_limit = body_limit

    def build(
        self, transaction: Transaction, identity: SpanIdentity, attributes: Attributes
    ) -> ReadableLogRecord:
        """Return the record of ``transaction``; ``attributes`` are those of its span."""
        severity = _severity(transaction)
        record = LogRecord(
            timestamp=end_ns(transaction),
            observed_timestamp=time.time_ns(),
            context=set_span_in_context(NonRecordingSpan(identity.context)),
            severity_text=severity.name,
            severity_number=severity,
            body=_display(transaction),
            attributes=self._with_bodies(transaction, attributes),
            event_name=semconv.EVENT_HTTP_TRANSACTION,
        )
        return ReadableLogRecord(
            log_record=record,
            resource=self._resource_of(transaction),
            instrumentation_scope=SCOPE,
        )

    def build_event(self, event: Event, identity: SpanIdentity | None) -> ReadableLogRecord:
        """Return the record of ``event``, as Qtap has it; ``identity`` is that of its span."""
        is_issue = event.event_type == "issue"
        severity = SeverityNumber.ERROR if is_issue else SeverityNumber.INFO
        span = None if identity is None else NonRecordingSpan(identity.context)
        record = LogRecord(
            timestamp=event.timestamp_ns,
            observed_timestamp=time.time_ns(),
            context=None if span is None else set_span_in_context(span),
            severity_text=severity.name,
            severity_number=severity,
            body=escape_line(event.describe()),
            attributes=event_attributes(event),
            event_name=EVENT_NAME_PREFIX + event.event_type,
        )
        return ReadableLogRecord(
            log_record=record,
            resource=self._resource_of(subject_of(event)),
            instrumentation_scope=SCOPE,
        )

    def _with_bodies(self, transaction: Transaction, attributes: Attributes) -> Attributes:
        level = transaction.level
        attributes = {**attributes, semconv.OTEL_QTAP_CAPTURE_LEVEL: level.value}
        if level.has_bodies:
            self._add_body(
                attributes,
                transaction.request,
                semconv.HTTP_REQUEST_BODY_CONTENT,
                semconv.OTEL_QTAP_REQUEST_BODY_TRUNCATED,
            )
            if transaction.response is not None:
                self._add_body(
                    attributes,
                    transaction.response,
                    semconv.HTTP_RESPONSE_BODY_CONTENT,
                    semconv.OTEL_QTAP_RESPONSE_BODY_TRUNCATED,
                )
        return attributes

    def _add_body(
        self,
        attributes: Attributes,
        message: Request | Response,
        content_key: str,
        truncated_key: str,
    ) -> None:
        """Add the body: as a string when its media type is textual, else as bytes."""
        if not message.body.size:
            return
        readable = readable_body(message, self._body_limit)
        is_cut = readable.is_cut
        if readable.text is not None and is_textual(readable.content_type):
            text, is_too_long = _cut(readable.text, self._body_limit)
            is_cut = is_cut or is_too_long
            if text:
                attributes[content_key] = text
        elif readable.data:
            is_cut = is_cut or len(readable.data) > self._body_limit
            attributes[content_key] = readable.data[: self._body_limit]
        if is_cut:
            attributes[truncated_key] = True


def _severity(transaction: Transaction) -> SeverityNumber:
    response = transaction.response
    if response is not None and 400 <= response.status < 500:
        return SeverityNumber.WARN
    if error_type(transaction) is not None:
        return SeverityNumber.ERROR
    if transaction.ending is Ending.CLIENT_CLOSED:
        return SeverityNumber.WARN
    return SeverityNumber.INFO


def _display(transaction: Transaction) -> str:
    """Return ``POST http://localhost:8085/api/create 200 12.3ms`` as one harmless line."""
    response = transaction.response
    status = f"({transaction.ending.value})" if response is None else str(response.status)
    line = f"{transaction.request.method} {transaction.url} {status}"
    return f"{escape_line(readable_text(line))} {transaction.timings.duration_ns / 1e6:.1f}ms"


def _cut(text: str, limit: int) -> tuple[str, bool]:
    """Return ``text`` within ``limit`` bytes of UTF-8, cut between characters."""
    if len(text) * 4 <= limit:
        return text, False
    encoded = text.encode("utf-8")
    if len(encoded) <= limit:
        return text, False
    return encoded[:limit].decode("utf-8", "ignore"), True
