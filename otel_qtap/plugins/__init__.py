"""What a stack is made of: each plugin takes transactions and decides what becomes of them."""

from otel_qtap.plugins.access_logs import AccessLogFormat, AccessLogRule, AccessLogs
from otel_qtap.plugins.http_capture import CaptureRule, HttpCapture
from otel_qtap.plugins.redaction import Redactor

__all__ = [
    "AccessLogFormat",
    "AccessLogRule",
    "AccessLogs",
    "CaptureRule",
    "HttpCapture",
    "Redactor",
]
