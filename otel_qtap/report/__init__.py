"""
Requests, errors, latencies and HAProxy's overhead per backend, frontend and path.

``Report`` is a consumer that adds up transactions, ``snapshot`` its values, ``rendering``
the table that ``otel-qtap report`` prints; ``records`` reads stored JSON lines back.
"""

from otel_qtap.report.aggregate import Report
from otel_qtap.report.records import read_record
from otel_qtap.report.rendering import By, Rates, rates_between, render_report
from otel_qtap.report.snapshot import ReportRow, ReportSnapshot, ReportTable, Spread

__all__ = [
    "By",
    "Rates",
    "Report",
    "ReportRow",
    "ReportSnapshot",
    "ReportTable",
    "Spread",
    "rates_between",
    "read_record",
    "render_report",
]
