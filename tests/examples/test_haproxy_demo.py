"""The demo shows what it says it shows: which blocks, which spans, which trees."""

from __future__ import annotations

import pytest
from haproxy_demo.receiver import Span, read_telemetry
from haproxy_demo.scene import ACTS, ENCORE, TESTS
from haproxy_demo.span_tree import SpanTree
from haproxy_demo.transactions import read_transactions

HAPROXY = 987


def block(direction: str, url: str, headers: str, source: str = "haproxy (PID: 987)") -> str:
    return (
        f"=== HTTP Transaction ===\nSource Process: {source}\nDirection: {direction}\n"
        f"Method: GET\nURL: {url}\nStatus: 200 OK\nDuration: 1ms\n\n"
        f"--- Request Headers ---\n{headers}\n\n"
        "--- Response Headers ---\nServer: x\n========================\n"
    )


INGRESS = "INGRESS ← (client to haproxy)"
EGRESS = "EGRESS → (haproxy to backend)"

BLOCKS = [
    pytest.param(
        block(INGRESS, "http://localhost:8085/health", "User-Agent: curl/8"),
        ("haproxy", 987, False, False),
        id="health-by-a-client",
    ),
    pytest.param(
        block(EGRESS, "http://localhost:8080/health", "User-Agent: curl/8"),
        ("haproxy", 987, True, False),
        id="health-by-a-client-forwarded",
    ),
    pytest.param(
        block(EGRESS, "http://backend-api-1:8001/health", "Host: x"),
        ("haproxy", 987, True, True),
        id="health-check-of-haproxy",
    ),
    pytest.param(
        block(INGRESS, "http://h/", "Host: h", "my (odd) name (PID: 5, Container: web-1)"),
        ("my (odd) name", 5, False, False),
        id="name-with-brackets-in-a-container",
    ),
]


@pytest.mark.parametrize(("text", "facts"), BLOCKS)
def test_blocks_are_told_apart(text, facts) -> None:
    """Process, side and health checks come out of a block; its text stays as it was."""
    (found,) = read_transactions(f"noise\n{text}more noise\n")

    assert (found.process, found.pid, found.is_egress, found.is_health_check) == facts
    assert found.text == text.rstrip("\n")


def test_an_unfinished_block_is_not_shown() -> None:
    """The agent may be in the middle of writing one."""
    whole = block(INGRESS, "http://h/", "Host: h")
    assert len(list(read_transactions(whole + whole[:-5]))) == 1


ROTEL_TEXT = """\
ResourceSpans #0
Resource SchemaURL:
Resource attributes:
     -> service.name: Str(haproxy)
     -> process.pid: Int(987)
ScopeSpans #0
ScopeSpans SchemaURL:
InstrumentationScope otel_qtap
Span #0
    Trace ID       : e9cdc8672605e9087bb7349016695494
    Parent ID      : b26aeb5d7fddf365
    ID             : e9cf908b3311f181
    Name           : GET
    Kind           : SPAN_KIND_CLIENT
Start time: 1000
End time: 2000
    Status code    : STATUS_CODE_ERROR
    Status message : boom
Attributes:
     -> url.full: Str(http://x/?q=(1))
     -> http.response.status_code: Int(500)
Links:
SpanLink #0
     -> Trace ID: 00000000000000000000000000000000
     -> Attributes::
          -> q: Int(1)
Span #1
    Trace ID       : e9cdc8672605e9087bb7349016695494
    Parent ID      :
    ID             : b26aeb5d7fddf365
    Name           : GET
    Kind           : SPAN_KIND_SERVER
Start time: 900
End time: 2100
    Status code    : STATUS_CODE_UNSET
Attributes:
     -> url.path: Str(/x)
     -> odd: Str(two
lines)
ResourceLog #0
Resource attributes:
     -> service.name: Str(haproxy)
ScopeLogs #0
LogRecord #0
ObservedTimestamp: 1
EventName: otel_qtap.http.transaction
Body: Str(GET / 200)
Attributes:
     -> k: Str(v)
    Trace ID       : e9cdc8672605e9087bb7349016695494
    Span ID        : b26aeb5d7fddf365
Flags: 1
"""


def test_the_collectors_text_is_read_back() -> None:
    """Ids, parents, kinds, times, outcome, attributes and resource survive; links do not mix in."""
    spans, logs = read_telemetry(ROTEL_TEXT)

    client, server = spans
    assert (client.span_id, client.parent_id) == ("e9cf908b3311f181", server.span_id)
    assert (client.kind, server.kind) == ("CLIENT", "SERVER")
    assert (client.start_ns, client.end_ns, client.is_error) == (1000, 2000, True)
    assert client.attributes == {
        "url.full": "http://x/?q=(1)",
        "http.response.status_code": "500",
    }
    assert (server.parent_id, server.is_error, server.process_id) == ("", False, 987)
    assert server.attributes["url.path"] == "/x"
    (record,) = logs
    assert record.event_name == "otel_qtap.http.transaction"
    assert (record.trace_id, record.span_id) == (server.trace_id, server.span_id)


def make_span(
    span_id: str, parent_id: str = "", kind: str = "CLIENT", pid: int = HAPROXY, **attributes: str
) -> Span:
    shown = {"url.path": "/x"} if kind == "SERVER" else {"url.full": "http://b/x"}
    names = {HAPROXY: "haproxy", 5: "backend", 6: "curl"}
    return Span(
        trace_id="t" * 32,
        span_id=span_id,
        parent_id=parent_id,
        name="GET",
        kind=kind,
        start_ns=int(span_id),
        end_ns=int(span_id) + 1_500_000,
        resource={"service.name": names[pid], "process.pid": str(pid)},
        attributes={
            "http.response.status_code": "200",
            **shown,
            **{name.replace("__", "."): value for name, value in attributes.items()},
        },
    )


def failed_connect(span_id: str, parent_id: str) -> Span:
    span = make_span(span_id, parent_id, error__type="connect_failed")
    del span.attributes["http.response.status_code"]
    span.is_error = True
    return span


def test_children_hang_below_their_parent() -> None:
    """Who asked, a retry, and the backend behind it are one tree, in order of time."""
    method = {"otel_qtap__link__method": "stream"}
    spans = [
        make_span("4", "2", **method, http__request__resend_count="1"),
        failed_connect("3", "2"),
        make_span("2", "1", kind="SERVER", otel_qtap__proxy__overhead="0.00025"),
        make_span("5", "4", kind="SERVER", pid=5),
        make_span("1", pid=6),
    ]
    tree = SpanTree(spans, HAPROXY)

    assert list(tree.lines()) == [
        f"trace {'t' * 32}",
        "  CLIENT GET           curl     http://b/x  200             1.50 ms",
        "  └─ SERVER GET        haproxy  /x          200             1.50 ms  overhead 0.25 ms",
        "     ├─ CLIENT GET     haproxy  http://b/x  connect_failed  1.50 ms",
        "     └─ CLIENT GET     haproxy  http://b/x  200             1.50 ms  by stream, resend 1",
        "        └─ SERVER GET  backend  /x          200             1.50 ms",
        "",
    ]
    assert (len(tree.requests), len(tree.linked), len(tree.unlinked)) == (1, 2, 0)
    assert (tree.is_linked, tree.size()) == (True, 5)


def test_an_error_status_is_said_once() -> None:
    """The type of the error is the status, by the conventions."""
    span = make_span("1", kind="SERVER", error__type="503", http__response__status_code="503")
    span.is_error = True
    (_, line, _) = SpanTree([span], HAPROXY).lines()
    assert line == "  SERVER GET  haproxy  /x  503  1.50 ms"


def test_a_backend_attempt_without_its_request_says_so() -> None:
    """No parent is invented, and other processes' own traces stay out."""
    tree = SpanTree([make_span("1"), make_span("2", kind="SERVER", pid=5)], HAPROXY)

    (_, line, _) = tree.lines()
    assert line.endswith("not linked to a request")
    assert (len(tree.linked), len(tree.unlinked), len(tree.requests)) == (0, 1, 0)


NOT_LINKED = [
    pytest.param([make_span("1", kind="SERVER"), make_span("2")], id="two-traces"),
    pytest.param(
        [make_span("1", pid=6), make_span("2", "1")], id="child-of-something-else-than-a-request"
    ),
    pytest.param(
        [make_span("1", kind="SERVER"), make_span("2", "1"), make_span("3", kind="SERVER")],
        id="a-request-without-attempts",
    ),
]


@pytest.mark.parametrize("spans", NOT_LINKED)
def test_a_request_that_is_not_linked_is_noticed(spans) -> None:
    """The demo fails then: linking is what it is there to show."""
    assert not SpanTree(spans, HAPROXY).is_linked


@pytest.mark.parametrize(
    ("attributes", "is_check"),
    [
        pytest.param({"url__full": "http://b:1/health"}, True, id="nobody-asked"),
        pytest.param(
            {"url__full": "http://b:1/health", "user_agent__original": "curl/8"},
            False,
            id="a-client-asked",
        ),
        pytest.param({"otel_qtap__health_check": "true"}, True, id="said"),
    ],
)
def test_health_checks_are_counted_apart(attributes, is_check) -> None:
    """HAProxy's own checks are no requests of anybody."""
    tree = SpanTree([make_span("1", **attributes)], HAPROXY)

    assert (len(tree.health_checks), len(tree.roots)) == ((1, 0) if is_check else (0, 1))


def test_the_demo_knows_what_there_is_to_see() -> None:
    """Each request has a client's side and one for each attempt; the encore takes two."""
    assert (len(TESTS), ENCORE.attempts) == (7, 2)
    assert sum(test.repeat for test in ACTS) == 18
    assert sum(test.sides for test in ACTS) == 2 * 17 + 3
