"""Transactions as OpenTelemetry spans and log records."""

from otel_qtap.exporters.identity import IdentifySpan, SpanIdentifier, SpanIdentity
from otel_qtap.exporters.otlp import OtlpExporter
from otel_qtap.exporters.resource import ResourceTable
from otel_qtap.exporters.transport import Signal, TransportOptions

__all__ = [
    "IdentifySpan",
    "OtlpExporter",
    "ResourceTable",
    "Signal",
    "SpanIdentifier",
    "SpanIdentity",
    "TransportOptions",
]
