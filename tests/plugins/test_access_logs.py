"""Access logs on the console and as JSON, by mode."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pytest

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.plugins.access_logs import AccessLogFormat, AccessLogs
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.stores.stdout import StdoutWriter
from otel_qtap.transaction.model import Direction

BAND = "=" * 80


@dataclass
class StatusRule:
    """A rule that matches one status."""

    status: int
    mode: CaptureLevel

    def matches(self, transaction) -> bool:
        return transaction.response is not None and transaction.response.status == self.status


@pytest.fixture
def printed(counters):
    """Print transactions and return what was written."""

    def run(*transactions, **options) -> str:
        stream = io.BytesIO()
        writer = StdoutWriter(stream, counters=counters)
        plugin = AccessLogs(**({"redactor": Redactor(), "writer": writer} | options))
        for transaction in transactions:
            plugin.consume(transaction)
        assert writer.close(30)
        return stream.getvalue().decode()

    return run


def test_console_summary(printed, make_transaction) -> None:
    """One line each; the arrow shows the direction; no colours unless on a terminal."""
    text = printed(
        make_transaction(),
        make_transaction(direction=Direction.EGRESS_INTERNAL, status=503),
        make_transaction(status=None),
        mode=CaptureLevel.SUMMARY,
    )
    assert text.splitlines() == [
        "■ haproxy ← GET http://localhost:8085/api/users 200 OK",
        "■ haproxy → GET http://backend-api-1:8001/api/users 503 Service Unavailable",
        "■ haproxy ← GET http://localhost:8085/api/users - client_closed",
    ]


@pytest.mark.parametrize(("status", "colour"), [(200, 32), (302, 34), (404, 33), (503, 31)])
def test_colours(status, colour, printed, make_transaction) -> None:
    """Green, blue, yellow and red by class of status."""
    text = printed(make_transaction(status=status), mode=CaptureLevel.SUMMARY, is_coloured=True)
    assert text.startswith(f"\x1b[{colour}m■\x1b[0m haproxy")


@pytest.mark.parametrize(
    ("mode", "titles"),
    [
        pytest.param(CaptureLevel.HEADERS, ["META", "REQUEST", "RESPONSE"], id="details"),
        pytest.param(
            CaptureLevel.FULL,
            ["META", "REQUEST", "REQUEST BODY", "RESPONSE", "RESPONSE BODY"],
            id="full",
        ),
    ],
)
def test_console_sections(mode, titles, printed, make_transaction) -> None:
    """The summary between bands, then the sections of the mode."""
    lines = printed(
        make_transaction(
            request_headers=(("cookie", "s3cret"),),
            response_headers=(("content-type", "image/png"),),
            response_body=b"\x89PNG",
        ),
        mode=mode,
    ).splitlines()
    assert (lines[0], lines[2], lines[-1]) == (BAND, BAND, BAND)
    assert lines[1].startswith("■ haproxy")
    dashes = "-" * 18
    assert [line for line in lines if line.startswith(dashes)] == [
        f"{dashes} {title} {dashes}" for title in titles
    ]
    assert "cookie: REDACTED" in lines
    assert ("(empty)" in lines) == (mode is CaptureLevel.FULL)
    assert ("Body is in binary format" in lines) == (mode is CaptureLevel.FULL)


def test_console_is_safe_to_look_at(printed, make_transaction) -> None:
    """No escape sequence and no forged section comes out of a body or a header."""
    text = printed(
        make_transaction(
            request_headers=(("x", "\x1b[2J"),),
            response_headers=(("content-type", "text/plain"),),
            response_body=f"{BAND}\n\x1b[2J\n■ fake\n".encode(),
        ),
        mode=CaptureLevel.FULL,
    )
    assert "\x1b" not in text
    assert text.splitlines().count(BAND) == 3
    assert "\\■ fake" in text.splitlines()


def test_json_summary(printed, make_transaction) -> None:
    """The keys of Qtap's message."""
    record = json.loads(
        printed(make_transaction(), mode=CaptureLevel.SUMMARY, format=AccessLogFormat.JSON)
    )
    assert record == {
        "level": "info",
        "ts": "2026-08-29T10:40:00.135456789Z",
        "msg": "HTTP transaction",
        "bin": "haproxy",
        "direction": "ingress",
        "method": "GET",
        "url": "http://localhost:8085/api/users",
        "status": 200,
        "qpoint_request_id": "d3kq1f0t8s4c73a1b2c0",
    }


def test_json_full(printed, make_transaction) -> None:
    """Meta as strings, both messages with headers and, at full, bodies."""
    record = json.loads(
        printed(
            make_transaction(
                request_body=b"hi", response_body=b'{"a":1}', request_headers=(("x-a", "1"),)
            ),
            mode=CaptureLevel.FULL,
            format=AccessLogFormat.JSON,
        )
    )
    assert record["msg"] == "HTTP transaction"
    assert all(isinstance(value, str) for value in record["meta"].values())
    assert record["meta"]["process_id"] == "987"
    assert record["request"] == {
        "url": "http://172.18.0.2:80/api/users",
        "method": "GET",
        "proto": "HTTP/1.1",
        "qpoint_request_id": "d3kq1f0t8s4c73a1b2c0",
        "headers": {"x-a": "1"},
        "body": "hi",
    }
    assert record["response"] == {
        "status": 200,
        "headers": {"content-type": "application/json"},
        "body": '{"a":1}',
    }


def test_rules_and_none(printed, make_transaction) -> None:
    """The first matching rule decides; ``none`` prints nothing."""
    text = printed(
        make_transaction(status=200),
        make_transaction(status=404),
        mode=CaptureLevel.SUMMARY,
        rules=[StatusRule(200, CaptureLevel.NONE)],
    )
    assert [line.split()[-3] for line in text.splitlines()] == ["404"]
