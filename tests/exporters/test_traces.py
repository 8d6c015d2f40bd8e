"""From what happens on sockets to the spans of one trace, for a HAProxy that is linked."""

from __future__ import annotations

from itertools import pairwise

import pytest
from conversations import Capture, Timeline, known
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.events import CloseStep, Role
from otel_qtap.exporters.identity import SpanIdentifier
from otel_qtap.exporters.spans import SpanBuilder
from otel_qtap.plugins.redaction import Redactor

TRACE, SPAN, OTHER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "53995c3f42cd8ad8"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
REWRITTEN = f"traceparent: 00-{TRACE}-{OTHER}-01"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
PASSED_ON = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: haproxy\r\n\r\n"

_BUILDER = SpanBuilder(resource_of=lambda _: Resource({}))
_IDENTIFY = SpanIdentifier(b"key")
_REDACTOR = Redactor()


def get(*fields: str) -> bytes:
    return "\r\n".join(("GET / HTTP/1.1", "Host: h", *fields, "", "")).encode()


def spans_of(time: Timeline, redactor: Redactor = _REDACTOR):
    """The spans that go out at level ``full``: those of servers, those of clients."""
    captured = Capture().play(time)
    transactions = [redactor.redact(each).reduced_to(CaptureLevel.FULL) for each in captured]
    spans = sorted(
        (_BUILDER.build(each, _IDENTIFY(each)) for each in transactions),
        key=lambda span: span.start_time,
    )
    by_kind = [
        [span for span in spans if span.kind is kind] for kind in (SpanKind.SERVER, SpanKind.CLIENT)
    ]
    assert len({span.context.span_id for span in spans}) == len(spans)
    return by_kind


def proxied(
    received: bytes,
    *exchanges: tuple[bytes, bytes],
    answer: bytes = PASSED_ON,
    redactor: Redactor = _REDACTOR,
):
    """A request that HAProxy sent to its backends until it had an answer; the spans of it."""
    time = Timeline()
    client = time.open(Role.SERVER, 1)
    client.ask(received)
    for number, (sent, answered) in enumerate(exchanges):
        backend = time.open(Role.CLIENT, 2 + number, connecting=known(7), local_port=40000 + number)
        if sent:
            backend.ask(sent, known(7))
            backend.answer(answered)
        else:
            backend.step(CloseStep.CONNECT_FAILED, 111)
    client.answer(answer, known(7))
    client.destroyed()
    return spans_of(time, redactor)


def test_a_proxy_that_passes_the_context_on() -> None:
    """The caller's trace; the backend names the caller as well, so nothing can be adopted."""
    (server,), (attempt,) = proxied(get(PARENT), (get(PARENT), OK))

    assert f"{server.context.trace_id:032x}" == f"{attempt.context.trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == SPAN
    assert attempt.parent.span_id == server.context.span_id
    assert SPAN not in (f"{server.context.span_id:016x}", f"{attempt.context.span_id:016x}")


def test_an_instrumented_backend_nests_below_an_attempt_with_an_id_of_the_proxy() -> None:
    """Its parent is the id that it was sent, and that is the span of the attempt."""
    (server,), (attempt,) = proxied(get(PARENT), (get(REWRITTEN), OK))

    assert f"{attempt.context.span_id:016x}" == OTHER
    assert attempt.parent.span_id == server.context.span_id


def test_of_several_attempts_with_one_id_the_first_has_it() -> None:
    """A failed connection sent nothing; what is sent again says the same again."""
    (server,), (gone, first, second) = proxied(
        get(PARENT), (b"", b""), (get(REWRITTEN), FAILED), (get(REWRITTEN), OK)
    )

    ids = [f"{span.context.span_id:016x}" for span in (gone, first, second)]
    assert [id_ == OTHER for id_ in ids] == [False, True, False]
    assert {span.parent.span_id for span in (gone, first, second)} == {server.context.span_id}
    counts = [span.attributes.get("http.request.resend_count") for span in (gone, first, second)]
    assert counts == [None, 1, 2]


def test_a_trace_that_haproxy_begins() -> None:
    """Client and backend meet in it."""
    (server,), (attempt,) = proxied(get(), (get(PARENT), OK))

    assert f"{server.context.trace_id:032x}" == f"{attempt.context.trace_id:032x}" == TRACE
    assert server.parent is None
    assert f"{attempt.context.span_id:016x}" == SPAN


def test_a_trace_that_haproxy_begins_is_not_told_to_some_only() -> None:
    """An attempt that goes out before anybody knows decides for all: one trace it stays."""
    (server,), attempts = proxied(get(), (b"", b""), (get(PARENT), OK))

    assert len({span.context.trace_id for span in (server, *attempts)}) == 1


def test_a_trace_that_haproxy_begins_is_that_of_a_client_on_this_host_too() -> None:
    """The client is captured as well, and its span is the root of all."""
    time = Timeline()
    wire = {"local_address": "192.0.2.7", "remote_address": "172.18.0.2", "remote_port": 80}
    curl = time.open(Role.CLIENT, 1, process_id=1234, local_port=51234, **wire)
    client = time.open(Role.SERVER, 2)
    curl.ask(get())
    client.ask(get())
    backend = time.open(Role.CLIENT, 3, connecting=known(7))
    backend.ask(get(PARENT), known(7))
    backend.answer(OK)
    client.answer(OK, known(7))
    curl.answer(OK)
    for end in (curl, client, backend):
        end.destroyed()
    (server,), (root, attempt) = spans_of(time)

    assert {f"{span.context.trace_id:032x}" for span in (root, server, attempt)} == {TRACE}
    assert root.parent is None
    assert server.parent.span_id == root.context.span_id
    assert attempt.parent.span_id == server.context.span_id
    assert f"{attempt.context.span_id:016x}" == SPAN


def test_a_trace_context_that_must_not_be_shown_is_not_used_either() -> None:
    """By nobody: all spans stay in one trace, of the agent's own."""
    redactor = Redactor(header_names={"traceparent", "tracestate"})
    fields = (PARENT, "tracestate: a=secret")
    (server,), (attempt,) = proxied(get(*fields), (get(*fields), OK), redactor=redactor)

    assert server.parent is None
    assert attempt.parent.span_id == server.context.span_id
    assert server.context.trace_id == attempt.context.trace_id != int(TRACE, 16)
    assert not server.context.trace_state
    assert not attempt.context.trace_state


def two_proxies(*requests: bytes):
    """What a client asks, what a HAProxy sends to the next one, and that to a backend."""
    time = Timeline()
    first = {"local_address": "172.18.0.2", "local_port": 40000}
    second = {"local_address": "172.18.0.3", "local_port": 8001, "process_id": 1234}
    client = time.open(Role.SERVER, 1)
    client.ask(requests[0])
    sender = time.open(
        Role.CLIENT, 2, connecting=known(7), **first,
        remote_address="172.18.0.3", remote_port=8001,
    )  # fmt: skip
    receiver = time.open(
        Role.SERVER, 3, **second, remote_address="172.18.0.2", remote_port=40000
    )  # fmt: skip
    sender.ask(requests[1], known(7))
    receiver.ask(requests[1])
    backend = time.open(Role.CLIENT, 4, connecting=known(8), process_id=1234, local_port=40001)
    backend.ask(requests[2], known(8))
    backend.answer(OK)
    receiver.answer(OK, known(8))
    sender.answer(OK)
    client.answer(OK, known(7))
    for end in (client, sender, receiver, backend):
        end.destroyed()
    (server, neighbour), (attempt, last) = spans_of(time)
    return server, attempt, neighbour, last


CHAINS = [
    pytest.param([get(), get(), get()], None, [None, None], id="no-context"),
    pytest.param([get(PARENT), get(PARENT), get(PARENT)], TRACE, [None, None], id="passed-on"),
    pytest.param(
        [get(PARENT), get(REWRITTEN), get(REWRITTEN)], TRACE, [OTHER, None], id="first-rewrites"
    ),
    pytest.param(
        [get(PARENT), get(PARENT), get(REWRITTEN)], TRACE, [None, OTHER], id="second-rewrites"
    ),
    pytest.param([get(), get(PARENT), get(PARENT)], TRACE, [SPAN, None], id="first-begins"),
    pytest.param([get(), get(), get(PARENT)], TRACE, [None, SPAN], id="second-begins"),
]


@pytest.mark.parametrize(("requests", "trace_id", "span_ids"), CHAINS)
def test_proxies_of_one_host_are_one_chain(requests, trace_id, span_ids) -> None:
    """Each side is the child of the one before, in one trace, whoever begins or changes it."""
    spans = two_proxies(*requests)

    assert len({span.context.trace_id for span in spans}) == 1
    for parent, child in pairwise(spans):
        assert child.parent.span_id == parent.context.span_id
    if trace_id is not None:
        assert f"{spans[0].context.trace_id:032x}" == trace_id
    for span, span_id in zip((spans[1], spans[3]), span_ids, strict=True):
        assert span_id in (None, f"{span.context.span_id:016x}")
    assert not any("headers." in key for key in spans[2].attributes)  # no proxy in between


def test_what_the_proxy_changed_is_on_the_attempt() -> None:
    """On the way there, and on the way back."""
    sent = get("X-Forwarded-For: 192.0.2.7").replace(b"Host: h", b"host: h")
    (_,), (attempt,) = proxied(get("Cookie: a"), (sent, OK))

    found = {key: value for key, value in attempt.attributes.items() if "headers." in key}
    assert found == {
        "otel_qtap.proxy.request.headers.added": ["x-forwarded-for"],
        "otel_qtap.proxy.request.headers.removed": ["cookie"],
        "otel_qtap.proxy.response.headers.added": ["via"],
    }


def test_an_answer_that_was_thrown_away_is_not_compared_with_the_one_that_was_given() -> None:
    """Its status tells that it is another one; a failed connection has nothing to compare."""
    (_,), (gone, first, second) = proxied(
        get(), (b"", b""), (get(), FAILED), (get(), OK), answer=PASSED_ON
    )

    assert not any("headers." in key for key in (*gone.attributes, *first.attributes))
    assert second.attributes["otel_qtap.proxy.response.headers.added"] == ["via"]
