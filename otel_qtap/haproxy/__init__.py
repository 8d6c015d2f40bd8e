"""
What HAProxy itself tells: names of its servers, its access log, its health checks.

All of it is optional. Transactions are complete without, and nothing here is asked of
HAProxy that changes it: configuration files and lines that it writes anyway are read, and
its runtime socket gets commands that only show.
"""

from otel_qtap.haproxy.account import HaproxyAccount, Names
from otel_qtap.haproxy.health import HealthCheck, HealthChecks
from otel_qtap.haproxy.log_join import LogJoiner
from otel_qtap.haproxy.log_match import ServedRequest
from otel_qtap.haproxy.names import HaproxyNames
from otel_qtap.haproxy.transactions import served_request
from otel_qtap.haproxy.view import CheckedServer, NameTables, ServerName
from otel_qtap.protocol.haproxy_log import AccessLogLine, LogFormat, parse_line, split_lines

__all__ = [
    "AccessLogLine",
    "CheckedServer",
    "HaproxyAccount",
    "HaproxyNames",
    "HealthCheck",
    "HealthChecks",
    "LogFormat",
    "LogJoiner",
    "NameTables",
    "Names",
    "ServedRequest",
    "ServerName",
    "parse_line",
    "served_request",
    "split_lines",
]
