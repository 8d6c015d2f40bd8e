"""Spans follow the HTTP semantic conventions, for both sides of a proxy."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, StatusCode

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.connection.model import Peer
from otel_qtap.exporters.identity import SpanIdentifier
from otel_qtap.exporters.spans import SpanBuilder
from otel_qtap.transaction.link import (
    Candidate,
    HopHeaders,
    Link,
    LinkMethod,
    ProxyHop,
    ProxyName,
)
from otel_qtap.transaction.model import Direction, Ending

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS_INTERNAL
MS = 1_000_000


@pytest.fixture
def span_of(make_transaction):
    """Make the span of ``make_transaction(**changes)``."""
    builder = SpanBuilder(resource_of=lambda _: Resource({"service.name": "haproxy"}))

    def build(**changes):
        transaction = make_transaction(**changes)
        return builder.build(transaction, SpanIdentifier(b"key")(transaction))

    return build


def test_server_span_attribute_by_attribute(span_of) -> None:
    """Everything required, conditionally required and recommended, and nothing unknown."""
    span = span_of(
        method="POST",
        target="/api/create?x=1",
        request_headers=(("host", "shop.example:8085"), ("user-agent", "curl/8")),
        request_body=b"12345",
        response_body=b"12",
        level=CaptureLevel.SUMMARY,
    )
    assert (span.name, span.kind) == ("POST", SpanKind.SERVER)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/api/create",
        "url.query": "x=1",
        "server.address": "shop.example",
        "server.port": 8085,
        "client.address": "192.0.2.7",
        "client.port": 51234,
        "network.local.address": "172.18.0.2",
        "network.local.port": 80,
        "network.peer.address": "192.0.2.7",
        "network.peer.port": 51234,
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "http.request.body.size": 5,
        "http.response.body.size": 2,
        "http.response.status_code": 200,
        "otel_qtap.time_to_first_byte": 0.006,
        "otel_qtap.request_id": "d3kq1f0t8s4c73a1b2c0",
        "otel_qtap.connection_id": "d3kq1f0t8s4c73a1b2bg",
    }
    assert span.instrumentation_scope.name == "otel_qtap"
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_client_span_attribute_by_attribute(span_of) -> None:
    """The client side names its target, in full."""
    span = span_of(direction=EGRESS, target="/a?b=c", level=CaptureLevel.SUMMARY)
    assert (span.name, span.kind) == ("GET", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "url.full": "http://backend-api-1:8001/a?b=c",
        "url.scheme": "http",
        "server.address": "backend-api-1",
        "server.port": 8001,
        "network.local.address": "172.18.0.2",
        "network.local.port": 40404,
        "network.peer.address": "172.18.0.3",
        "network.peer.port": 8001,
        "network.protocol.version": "1.1",
        "http.response.body.size": 0,
        "http.response.status_code": 200,
        "otel_qtap.time_to_first_byte": 0.006,
        "otel_qtap.request_id": "d3kq1f0t8s4c73a1b2c0",
        "otel_qtap.connection_id": "d3kq1f0t8s4c73a1b2bg",
    }


OUTCOMES = [
    pytest.param(INGRESS, 200, Ending.COMPLETE, None, id="server-2xx"),
    pytest.param(INGRESS, 302, Ending.COMPLETE, None, id="server-3xx"),
    pytest.param(INGRESS, 404, Ending.COMPLETE, None, id="server-4xx"),
    pytest.param(EGRESS, 404, Ending.COMPLETE, "404", id="client-4xx"),
    pytest.param(INGRESS, 503, Ending.COMPLETE, "503", id="server-5xx"),
    pytest.param(EGRESS, 503, Ending.COMPLETE, "503", id="client-5xx"),
    pytest.param(EGRESS, 101, Ending.UPGRADED, None, id="upgraded"),
    pytest.param(EGRESS, None, Ending.CONNECT_FAILED, "connect_failed", id="no-connection"),
    pytest.param(EGRESS, None, Ending.TIMED_OUT, "timeout", id="timeout"),
    pytest.param(EGRESS, None, Ending.RESET, "connection_reset", id="reset"),
    pytest.param(EGRESS, 200, Ending.SERVER_CLOSED, "server_closed", id="half-a-response"),
    pytest.param(EGRESS, 502, Ending.SERVER_CLOSED, "502", id="status-goes-first"),
    pytest.param(INGRESS, None, Ending.CLIENT_CLOSED, None, id="client-went-away"),
    pytest.param(INGRESS, None, Ending.LOST, None, id="our-own-loss"),
]


@pytest.mark.parametrize(("direction", "status", "ending", "error"), OUTCOMES)
def test_outcome(direction, status, ending, error, span_of) -> None:
    """A 4xx is the client's error and not the server's; without an answer the ending says why."""
    span = span_of(direction=direction, status=status, ending=ending)
    expected = StatusCode.UNSET if error is None else StatusCode.ERROR
    assert (span.status.status_code, span.status.description) == (expected, None)
    assert span.attributes.get("error.type") == error
    assert span.attributes.get("http.response.status_code") == status
    said = None if ending is Ending.COMPLETE else ending.value
    assert span.attributes.get("otel_qtap.ending") == said


@pytest.mark.parametrize(
    ("method", "name", "attribute", "original"),
    [
        ("GET", "GET", "GET", None),
        ("QUERY", "QUERY", "QUERY", None),
        ("PROPFIND", "HTTP", "_OTHER", "PROPFIND"),
        ("get", "HTTP", "_OTHER", "get"),
    ],
)
def test_methods(method, name, attribute, original, span_of) -> None:
    """Unknown methods keep names and metrics few; the path is never part of a name."""
    span = span_of(method=method)
    assert span.name == name
    assert span.attributes["http.request.method"] == attribute
    assert span.attributes.get("http.request.method_original") == original


def test_known_methods_from_the_environment(monkeypatch, make_transaction) -> None:
    """The standard variable is a full override."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "PROPFIND, GET")
    builder = SpanBuilder(resource_of=lambda _: Resource({}))
    names = [
        builder.attributes(make_transaction(method=method))["http.request.method"]
        for method in ("PROPFIND", "POST")
    ]
    assert names == ["PROPFIND", "_OTHER"]


@pytest.mark.parametrize(
    ("level", "has_headers"),
    [(CaptureLevel.SUMMARY, False), (CaptureLevel.HEADERS, True), (CaptureLevel.FULL, True)],
)
def test_headers_by_level(level, has_headers, span_of) -> None:
    """Header fields are lists of strings under lower-case keys, all values in order."""
    span = span_of(
        level=level,
        request_headers=(("Accept", "a"), ("X-Name", "Zo\xc3\xab"), ("accept", "b")),
        response_headers=(("Content-Type", "text/plain"),),
    )
    found = {key: value for key, value in span.attributes.items() if ".header." in key}
    assert found == (
        {
            "http.request.header.accept": ["a", "b"],
            "http.request.header.x-name": ["Zoë"],
            "http.response.header.content-type": ["text/plain"],
        }
        if has_headers
        else {}
    )


def test_forwarded_client_of_a_server_span(span_of) -> None:
    """Logical ends follow the forwarding headers, ``network.*`` stays what the socket says."""
    span = span_of(
        request_headers=(
            ("host", "10.0.0.1"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
        ),
        proxied_source=Peer("198.51.100.9", 1),
    )
    keys = ("client.address", "client.port", "url.scheme", "server.address", "server.port")
    assert [span.attributes.get(key) for key in keys] == [
        "198.51.100.1",
        None,
        "https",
        "shop.example",
        443,
    ]
    assert span.attributes["network.peer.address"] == "192.0.2.7"


def test_times(span_of, make_timings, factories) -> None:
    """First request byte to last response byte, to the nanosecond."""
    start = factories.START_NS
    span = span_of(timings=make_timings(duration_ns=12 * MS))
    assert (span.start_time, span.end_time) == (start, start + 12 * MS)


def test_client_span_includes_its_connect(span_of, make_timings, factories) -> None:
    """A client that had to connect began there; a server did not."""
    start = factories.START_NS
    timings = make_timings(connect_start_ns=start - 3 * MS, connect_end_ns=start - MS)
    assert span_of(direction=EGRESS, timings=timings).start_time == start - 3 * MS
    assert span_of(timings=timings).start_time == start


def test_unanswered_spans_end_when_it_was_over(span_of, make_timings, factories) -> None:
    """Without a response the end is what ended it, and never before the start."""
    start = factories.START_NS
    timings = make_timings(duration_ns=5 * MS, response_end_ns=0)
    assert span_of(status=None, timings=timings).end_time == start + 5 * MS
    timings = make_timings(response_end_ns=0, end_ns=0)
    span = span_of(status=None, timings=timings)
    assert span.end_time == span.start_time == start


@pytest.mark.parametrize(
    ("version", "said"), [("1.0", "1.0"), ("1.1", "1.1"), ("2.0", "2"), ("2", "2")]
)
def test_protocol_version(version, said, span_of, make_request) -> None:
    """``2``, not ``2.0``."""
    assert (
        span_of(request=make_request(version=version)).attributes["network.protocol.version"]
        == said
    )


OURS = ("haproxy.", "http.request.resend_count", "otel_qtap.")
ALWAYS = {"otel_qtap.request_id", "otel_qtap.connection_id", "otel_qtap.time_to_first_byte"}
STREAM = Link(method=LinkMethod.STREAM, parent_id="server", root_id="server")
NEIGHBOUR = Link(method=LinkMethod.CONNECTION, parent_id="attempt", root_id="server")

RELATIONS = [
    pytest.param(INGRESS, {}, {}, id="alone"),
    pytest.param(EGRESS, {"link": STREAM}, {"otel_qtap.link.method": "stream"}, id="attempt"),
    pytest.param(
        INGRESS, {"link": NEIGHBOUR}, {"otel_qtap.link.method": "connection"}, id="neighbour"
    ),
    pytest.param(
        EGRESS,
        {"link": STREAM, "resend_count": 2},
        {"otel_qtap.link.method": "stream", "http.request.resend_count": 2},
        id="resent",
    ),
    pytest.param(
        INGRESS,
        {"hop": ProxyHop(attempts=3, overhead_ns=250_000)},
        {"otel_qtap.proxy.attempts": 3, "otel_qtap.proxy.overhead": 0.00025},
        id="proxied",
    ),
    pytest.param(
        INGRESS,
        {"hop": ProxyHop(attempts=0, overhead_ns=12 * MS)},
        {"otel_qtap.proxy.attempts": 0, "otel_qtap.proxy.overhead": 0.012},
        id="answered-by-the-proxy-itself",
    ),
    pytest.param(
        EGRESS, {"is_health_check": True}, {"otel_qtap.health_check": True}, id="health-check"
    ),
    pytest.param(
        EGRESS,
        {"candidates": (Candidate("one", "one", ()),)},
        {"otel_qtap.link.ambiguous": True},
        id="ambiguous",
    ),
    pytest.param(
        EGRESS,
        {"proxy_name": ProxyName("api_servers", "api1")},
        {"haproxy.proxy_name": "api_servers", "haproxy.service_name": "api1"},
        id="named",
    ),
]


@pytest.mark.parametrize(("direction", "changes", "expected"), RELATIONS)
def test_what_it_has_to_do_with_others(direction, changes, expected, span_of) -> None:
    """Each fact in its attribute, and none where it is not known."""
    attributes = span_of(direction=direction, level=CaptureLevel.SUMMARY, **changes).attributes
    found = {key: value for key, value in attributes.items() if key.startswith(OURS)}
    assert {key: value for key, value in found.items() if key not in ALWAYS} == expected


def test_an_attempt_is_a_child_of_its_request(span_of) -> None:
    """Parent and trace are those of the request's own span."""
    span = span_of(direction=EGRESS, link=STREAM)
    request = span_of(request_id="server")
    assert span.parent.span_id == request.context.span_id
    assert span.context.trace_id == request.context.trace_id


def test_candidates_become_span_links(span_of) -> None:
    """To the spans that may be the parent; there is none then."""
    candidates = (Candidate("one", "one", ()), Candidate("two", "two", ()))
    span = span_of(direction=EGRESS, candidates=candidates)
    expected = [span_of(request_id=request_id).context for request_id in ("one", "two")]
    assert span.parent is None
    assert [link.context for link in span.links] == expected


def test_a_connection_that_failed_is_a_failed_attempt(
    span_of, make_request, make_timings, factories
) -> None:
    """A CLIENT span like the others, from the first packet to the refusal; nothing was answered."""
    start = factories.START_NS
    timings = make_timings(
        start_ns=start, duration_ns=2 * MS, response_start_ns=0, response_head_ns=0,
        response_end_ns=0, request_end_ns=0, connect_start_ns=start,
    )  # fmt: skip
    span = span_of(
        direction=EGRESS,
        link=STREAM,
        request=make_request(headers=()),
        response=None,
        timings=timings,
        ending=Ending.CONNECT_FAILED,
    )
    assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
    assert (span.start_time, span.end_time) == (start, start + 2 * MS)
    assert span.attributes["error.type"] == "connect_failed"
    assert span.attributes["server.address"] == "backend-api-1"
    assert not any("response" in key for key in span.attributes)
    assert "otel_qtap.connect.duration" not in span.attributes


def test_an_attempt_that_the_proxy_waited_for_in_vain_is_an_error(span_of) -> None:
    """By itself a client that closes is none."""
    span = span_of(direction=EGRESS, response=None, ending=Ending.CLIENT_CLOSED, was_given_up=True)
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "timeout")
    assert span.attributes["otel_qtap.ending"] == "client_closed"


def test_times_of_the_steps(span_of, make_timings, factories) -> None:
    """In seconds; what did not happen takes no time and has no attribute."""
    start = factories.START_NS
    timings = make_timings(
        connect_start_ns=start - 3 * MS,
        connect_end_ns=start - MS,
        response_start_ns=start + 5 * MS,
    )
    attributes = span_of(direction=EGRESS, timings=timings).attributes
    assert attributes["otel_qtap.connect.duration"] == 0.002
    assert attributes["otel_qtap.time_to_first_byte"] == 0.005
    attributes = span_of(direction=EGRESS, status=None).attributes
    assert not {"otel_qtap.connect.duration", "otel_qtap.time_to_first_byte"} & set(attributes)


CHANGES = HopHeaders(
    received=(("Host", "shop"), ("Cookie", "secret"), ("X-Debug", "1")),
    sent=(("host", "shop"), ("cookie", "other"), ("x-forwarded-for", "192.0.2.7")),
    answered=(("server", "backend"),),
    passed_on=(("server", "backend"), ("set-cookie", "secret")),
)


@pytest.mark.parametrize(
    ("level", "is_told"),
    [(CaptureLevel.SUMMARY, False), (CaptureLevel.HEADERS, True), (CaptureLevel.FULL, True)],
)
def test_what_a_proxy_changed_is_told_by_name(level, is_told, span_of, make_transaction) -> None:
    """At the levels that keep headers; the values are nobody's business."""
    reduced = make_transaction(direction=EGRESS, hop_headers=CHANGES).reduced_to(level)
    attributes = span_of(direction=EGRESS, hop_changes=reduced.hop_changes, level=level).attributes
    found = {key: value for key, value in attributes.items() if ".proxy." in key}
    assert found == (
        {
            "otel_qtap.proxy.request.headers.added": ["x-forwarded-for"],
            "otel_qtap.proxy.request.headers.removed": ["x-debug"],
            "otel_qtap.proxy.request.headers.changed": ["cookie"],
            "otel_qtap.proxy.response.headers.added": ["set-cookie"],
        }
        if is_told
        else {}
    )


def test_anything_on_the_wire_can_be_encoded(span_of, make_process) -> None:
    """Every octet, and a program name that is no text, goes through the SDK's encoder."""
    nasty = "".join(map(chr, range(256)))
    for direction in (INGRESS, EGRESS):
        span = span_of(
            direction=direction,
            method=nasty,
            target=f"/{nasty}?{nasty}",
            request_headers=((nasty, nasty), ("host", nasty), ("user-agent", nasty)),
            process=make_process(executable="/bin/\udcff"),
            proxy_name=ProxyName(nasty, nasty),
            hop_changes=HopHeaders(((nasty, nasty),), (("é", nasty),)).changes(),
        )
        encoded = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
        assert len(encoded.attributes) == len(span.attributes)
