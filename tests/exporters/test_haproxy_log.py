"""What HAProxy says of a request stands on the SERVER span and its log record."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource

from otel_qtap.exporters.haproxy_log import haproxy_attributes
from otel_qtap.exporters.spans import SpanBuilder
from otel_qtap.protocol.haproxy_log import AccessLogLine, parse_line


def read(who: str, timers: str, state: str) -> AccessLogLine:
    """Return a line about a request that ``who`` handled, less the request."""
    line = parse_line(
        f"192.0.2.7:51234 [21/Nov/2026:14:49:12.345] {who} {timers} 200 244 - - {state}"
        ' 1/1/0/0/0 0/0 "GET /x?token=secret HTTP/1.1"'.encode()
    )
    assert line is not None
    return line.without_request()


LINES = [
    pytest.param(
        ("front api/api-1", "1/20/3/4000/4024", "----"),
        {
            "otel_qtap.haproxy.frontend": "front",
            "otel_qtap.haproxy.backend": "api",
            "otel_qtap.haproxy.server": "api-1",
            "otel_qtap.haproxy.termination_state": "----",
            "otel_qtap.haproxy.request_time": 0.001,
            "otel_qtap.haproxy.queue_time": 0.02,
            "otel_qtap.haproxy.connect_time": 0.003,
            "otel_qtap.haproxy.response_time": 4.0,
            "otel_qtap.haproxy.active_time": 4.024,
        },
        id="answered",
    ),
    pytest.param(
        ("front~ api/<NOSRV>", "0/-1/-1/-1/0", "SC--"),
        {
            "otel_qtap.haproxy.frontend": "front",
            "otel_qtap.haproxy.backend": "api",
            "otel_qtap.haproxy.handler": "NOSRV",
            "otel_qtap.haproxy.termination_state": "SC--",
            "otel_qtap.haproxy.request_time": 0.0,
            "otel_qtap.haproxy.active_time": 0.0,
        },
        id="no-server",
    ),
]


@pytest.mark.parametrize(("said", "attributes"), LINES)
def test_a_line_becomes_attributes(said, attributes) -> None:
    """Times in seconds; a step that was not reached has none."""
    assert haproxy_attributes(read(*said)) == attributes


def test_they_stand_beside_what_was_seen(make_transaction) -> None:
    """On the span and, as all its attributes, on the log record."""
    builder = SpanBuilder(resource_of=lambda _: Resource({}))
    line = read("front api/api-1", "1/20/3/4000/4024", "sD--")
    with_line = builder.attributes(make_transaction(haproxy_log=line))
    without = builder.attributes(make_transaction())

    assert with_line == without | haproxy_attributes(line)
    assert not any(name.startswith("otel_qtap.haproxy.") for name in without)
