"""Log records: the facts of the span, the payload, and a severity that operators expect."""

from __future__ import annotations

import gzip
import time

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk.resources import Resource

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.exporters.identity import SpanIdentifier
from otel_qtap.exporters.logs import LogBuilder
from otel_qtap.exporters.spans import SpanBuilder
from otel_qtap.transaction.link import HopHeaders, Link, LinkMethod
from otel_qtap.transaction.model import Direction, Ending

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS_INTERNAL


@pytest.fixture
def record_of(make_transaction):
    """Make the record of ``make_transaction(**changes)`` and encode it as the SDK would."""
    resource = Resource({"service.name": "haproxy"})
    spans = SpanBuilder(resource_of=lambda _: resource)

    def build(*, body_limit: int = 1000, **changes):
        transaction = make_transaction(**changes)
        logs = LogBuilder(resource_of=lambda _: resource, body_limit=body_limit)
        identity = SpanIdentifier(b"key")(transaction)
        return logs.build(transaction, identity, spans.attributes(transaction))

    return build


def test_record(record_of, make_transaction, factories) -> None:
    """Name, times, ids of the span, and the attributes of the span with the level."""
    before = time.time_ns()
    readable = record_of(level=CaptureLevel.SUMMARY)
    record = readable.log_record
    identity = SpanIdentifier(b"key")(make_transaction())

    assert record.event_name == "otel_qtap.http.transaction"
    assert record.timestamp == factories.START_NS + 12_000_000
    assert before <= record.observed_timestamp <= time.time_ns()
    assert (record.trace_id, record.span_id) == (
        identity.context.trace_id,
        identity.context.span_id,
    )
    assert record.body == "GET http://localhost:8085/api/users 200 12.0ms"
    assert record.attributes["http.response.status_code"] == 200
    assert record.attributes["url.path"] == "/api/users"
    assert record.attributes["otel_qtap.capture.level"] == "summary"
    assert not any(".body.content" in key for key in record.attributes)
    assert readable.resource.attributes["service.name"] == "haproxy"


SEVERITIES = [
    pytest.param(INGRESS, 200, Ending.COMPLETE, "INFO", id="2xx"),
    pytest.param(INGRESS, 404, Ending.COMPLETE, "WARN", id="server-4xx"),
    pytest.param(EGRESS, 404, Ending.COMPLETE, "WARN", id="client-4xx"),
    pytest.param(INGRESS, 503, Ending.COMPLETE, "ERROR", id="5xx"),
    pytest.param(EGRESS, None, Ending.TIMED_OUT, "ERROR", id="no-answer"),
    pytest.param(EGRESS, 200, Ending.SERVER_CLOSED, "ERROR", id="half-an-answer"),
    pytest.param(INGRESS, None, Ending.CLIENT_CLOSED, "WARN", id="client-went-away"),
    pytest.param(INGRESS, None, Ending.UNFINISHED, "INFO", id="unfinished"),
]


@pytest.mark.parametrize(("direction", "status", "ending", "severity"), SEVERITIES)
def test_severity(direction, status, ending, severity, record_of) -> None:
    """5xx and missing answers are errors, 4xx and impatient clients are warnings."""
    record = record_of(direction=direction, status=status, ending=ending).log_record
    assert record.severity_text == record.severity_number.name == severity


def test_what_a_span_says_of_its_link_its_record_says_too(record_of) -> None:
    """A search in the logs finds it without the trace."""
    record = record_of(
        direction=EGRESS,
        link=Link(method=LinkMethod.STREAM, parent_id="server", root_id="server"),
        hop_changes=HopHeaders((("a", "1"),), (("a", "1"), ("x-forwarded-for", "b"))).changes(),
        resend_count=1,
    ).log_record
    assert record.attributes["otel_qtap.link.method"] == "stream"
    assert record.attributes["http.request.resend_count"] == 1
    assert record.attributes["otel_qtap.proxy.request.headers.added"] == ["x-forwarded-for"]


def test_a_failed_connection_is_an_error_to_wake_up_for(record_of) -> None:
    """It says which server could not be reached."""
    record = record_of(direction=EGRESS, status=None, ending=Ending.CONNECT_FAILED).log_record
    assert record.severity_text == "ERROR"
    assert record.body == "GET http://backend-api-1:8001/api/users (connect_failed) 12.0ms"


JSON = "application/json"

BODIES = [
    pytest.param(JSON, b'{"a":1}', '{"a":1}', id="json"),
    pytest.param("Application/Problem+JSON", b"{}", "{}", id="suffix-any-case"),
    pytest.param("text/plain; charset=iso-8859-1", b"caf\xe9", "café", id="charset"),
    pytest.param("application/x-www-form-urlencoded", b"a=b", "a=b", id="form"),
    pytest.param("application/foo; charset=utf-8", b"x", "x", id="any-type-with-charset"),
    pytest.param("application/octet-stream", b"text", b"text", id="binary"),
    pytest.param("application/unknown", b"text", b"text", id="not-textual"),
    pytest.param("", b"text", b"text", id="no-type"),
    pytest.param("text/plain", b"\xff\x00", b"\xff\x00", id="not-what-it-says"),
]


@pytest.mark.parametrize(("content_type", "content", "expected"), BODIES)
def test_bodies(content_type, content, expected, record_of) -> None:
    """A string where the media type is textual, else bytes; never base64."""
    headers = (("content-type", content_type),) if content_type else ()
    record = record_of(
        request_headers=headers,
        request_body=content,
        response_headers=headers,
        response_body=content,
    ).log_record
    assert record.attributes["http.request.body.content"] == expected
    assert record.attributes["http.response.body.content"] == expected
    assert "otel_qtap.request.body.truncated" not in record.attributes


@pytest.mark.parametrize("level", [CaptureLevel.SUMMARY, CaptureLevel.HEADERS])
def test_no_bodies_below_full(level, record_of) -> None:
    """Only ``full`` carries content."""
    attributes = record_of(level=level, response_body=b"{}").log_record.attributes
    assert not any(".body.content" in key for key in attributes)


def test_content_coding_is_removed(record_of) -> None:
    """The content is what was meant; the size is what passed."""
    packed = gzip.compress(b'{"a":1}')
    attributes = record_of(
        response_headers=(("content-type", JSON), ("content-encoding", "gzip")),
        response_body=packed,
    ).log_record.attributes
    assert attributes["http.response.body.content"] == '{"a":1}'
    assert attributes["http.response.body.size"] == len(packed)


@pytest.mark.parametrize(
    ("content_type", "expected"), [("text/plain", "aé"), ("image/png", "aéé".encode()[:4])]
)
def test_cut_at_the_limit(content_type, expected, record_of) -> None:
    """Text is cut between characters; the cut is told; the size stays true."""
    attributes = record_of(
        body_limit=4,
        response_headers=(("content-type", content_type),),
        response_body="aéé".encode(),
    ).log_record.attributes
    assert attributes["http.response.body.content"] == expected
    assert attributes["otel_qtap.response.body.truncated"] is True
    assert attributes["http.response.body.size"] == 5


def test_latin_1_that_grows_in_utf_8_is_cut_too(record_of) -> None:
    """The limit holds for what is sent, not for what was received."""
    attributes = record_of(
        body_limit=5,
        response_headers=(("content-type", "text/plain; charset=latin-1"),),
        response_body=b"\xe9" * 4,
    ).log_record.attributes
    assert attributes["http.response.body.content"] == "éé"
    assert attributes["otel_qtap.response.body.truncated"] is True


def test_not_captured_whole(record_of, make_body) -> None:
    """What the capture cut is truncated, whatever the limit."""
    attributes = record_of(response_body=make_body(b'{"a', size=100)).log_record.attributes
    assert attributes["http.response.body.content"] == '{"a'
    assert attributes["otel_qtap.response.body.truncated"] is True
    assert attributes["http.response.body.size"] == 100


def test_the_display_line_is_one_harmless_line(record_of) -> None:
    """No control character of a target reaches a console through the body of the record."""
    body = record_of(method="A\nB", target="/\x1b[2J", status=None).log_record.body
    assert body == r"A\x0aB http://localhost:8085/\x1b[2J (client_closed) 12.0ms"


def test_anything_can_be_encoded(record_of) -> None:
    """Bytes, lists and every octet go through the SDK's encoder."""
    nasty = "".join(map(chr, range(256)))
    readable = record_of(
        target=f"/{nasty}", request_headers=((nasty, nasty),), request_body=bytes(range(256))
    )
    encoded = encode_logs([readable]).resource_logs[0].scope_logs[0].log_records[0]
    assert len(encoded.attributes) == len(readable.log_record.attributes)
