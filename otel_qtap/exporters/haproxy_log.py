"""What HAProxy itself says of a request, as attributes of its SERVER span and log record."""

from __future__ import annotations

from opentelemetry.util.types import AnyValue

from otel_qtap.exporters import semconv
from otel_qtap.protocol.haproxy_log import AccessLogLine
from otel_qtap.transaction.readable import readable_text

__all__ = ["haproxy_attributes"]


def haproxy_attributes(line: AccessLogLine) -> dict[str, AnyValue]:
    """Return who handled a request and how long each step took, as far as there was one."""
    names = {
        semconv.OTEL_QTAP_HAPROXY_FRONTEND: line.frontend,
        semconv.OTEL_QTAP_HAPROXY_BACKEND: line.backend,
        semconv.OTEL_QTAP_HAPROXY_SERVER: line.server,
        semconv.OTEL_QTAP_HAPROXY_HANDLER: line.handler,
        semconv.OTEL_QTAP_HAPROXY_TERMINATION_STATE: line.termination_state,
    }
    times_ms = {
        semconv.OTEL_QTAP_HAPROXY_REQUEST_TIME: line.request_ms,
        semconv.OTEL_QTAP_HAPROXY_QUEUE_TIME: line.queue_ms,
        semconv.OTEL_QTAP_HAPROXY_CONNECT_TIME: line.connect_ms,
        semconv.OTEL_QTAP_HAPROXY_RESPONSE_TIME: line.response_ms,
        semconv.OTEL_QTAP_HAPROXY_ACTIVE_TIME: line.active_ms,
    }
    attributes: dict[str, AnyValue] = {
        name: readable_text(value) for name, value in names.items() if value
    }
    attributes |= {name: value / 1000 for name, value in times_ms.items() if value >= 0}
    return attributes
