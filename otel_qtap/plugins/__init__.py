"""What a stack is made of: each plugin takes transactions and decides what becomes of them."""

from otel_qtap.plugins.access_logs import AccessLogFormat, AccessLogRule, AccessLogs
from otel_qtap.plugins.artifact_report import ArtifactReporter
from otel_qtap.plugins.connection_report import ConnectionReporter
from otel_qtap.plugins.detect_errors import DetectErrors, ErrorRule, parse_status_codes
from otel_qtap.plugins.http_capture import CaptureRule, HttpCapture
from otel_qtap.plugins.http_metrics import HttpMetrics
from otel_qtap.plugins.logger import Logger
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.report_usage import ReportUsage

__all__ = [
    "AccessLogFormat",
    "AccessLogRule",
    "AccessLogs",
    "ArtifactReporter",
    "CaptureRule",
    "ConnectionReporter",
    "DetectErrors",
    "ErrorRule",
    "HttpCapture",
    "HttpMetrics",
    "Logger",
    "Redactor",
    "ReportUsage",
    "parse_status_codes",
]
