"""Trace and span ids: the caller's trace where it is named, the same answer for everybody."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.exporters.identity import SpanIdentifier, remote_parent
from otel_qtap.transaction.model import Direction

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"

PARENTS = [
    pytest.param([("traceparent", PARENT)], (TRACE, SPAN, 1), id="w3c"),
    pytest.param([("Traceparent", f" {PARENT} ")], (TRACE, SPAN, 1), id="case-and-spaces"),
    pytest.param([("traceparent", f"00-{TRACE}-{SPAN}-00")], (TRACE, SPAN, 0), id="not-sampled"),
    pytest.param(
        [("traceparent", f"cc-{TRACE}-{SPAN}-01-x")], (TRACE, SPAN, 1), id="later-version"
    ),
    pytest.param([("traceparent", f"{PARENT}-x")], None, id="version-00-with-more"),
    pytest.param([("traceparent", f"ff-{TRACE}-{SPAN}-01")], None, id="version-ff"),
    pytest.param([("traceparent", f"00-{'0' * 32}-{SPAN}-01")], None, id="zero-trace"),
    pytest.param([("traceparent", f"00-{TRACE}-{'0' * 16}-01")], None, id="zero-span"),
    pytest.param([("traceparent", PARENT.upper())], None, id="upper-case"),
    pytest.param([("traceparent", PARENT)] * 2, None, id="twice"),
    pytest.param([("traceparent", "")], None, id="empty"),
    pytest.param([("b3", f"{TRACE}-{SPAN}-1")], (TRACE, SPAN, 1), id="b3"),
    pytest.param([("b3", f"{TRACE}-{SPAN}")], (TRACE, SPAN, 0), id="b3-undecided"),
    pytest.param([("b3", f"{TRACE}-{SPAN}-d-{SPAN}")], (TRACE, SPAN, 1), id="b3-debug"),
    pytest.param(
        [("b3", f"{TRACE[16:]}-{SPAN}-1")], (f"{0:016x}{TRACE[16:]}", SPAN, 1), id="b3-64"
    ),
    pytest.param([("b3", "0")], None, id="b3-deny"),
    pytest.param(
        [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "1")],
        (TRACE, SPAN, 1),
        id="b3-multi",
    ),
    pytest.param([("X-B3-TraceId", TRACE)], None, id="b3-without-span"),
    pytest.param(
        [("b3", "0"), ("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)], None, id="b3-single-wins"
    ),
    pytest.param(
        [("traceparent", PARENT), ("b3", f"{'1' * 32}-{SPAN}-1")], (TRACE, SPAN, 1), id="w3c-wins"
    ),
    pytest.param(
        [("traceparent", "junk"), ("b3", f"{TRACE}-{SPAN}-1")], (TRACE, SPAN, 1), id="b3-instead"
    ),
    pytest.param([], None, id="none"),
]

STATES = [
    pytest.param(["a=1,b@c=2"], {"a": "1", "b@c": "2"}, id="in-order"),
    pytest.param(["a=1", " b=2 "], {"a": "1", "b": "2"}, id="two-headers"),
    pytest.param(["a=1,,b=2"], {"a": "1", "b": "2"}, id="empty-member"),
    pytest.param(["a=1,Bad=2"], {}, id="one-wrong-drops-all"),
    pytest.param(["a=1,a=2"], {}, id="duplicate"),
    pytest.param([",".join(f"k{n}=v" for n in range(33))], {}, id="too-many"),
    pytest.param(["s3cret"], {}, id="junk"),
]


@pytest.mark.parametrize(("headers", "expected"), PARENTS)
def test_remote_parent(headers, expected) -> None:
    """What is valid is taken, what is not is as if it were not there."""
    parent = remote_parent(tuple(headers))
    if expected is None:
        assert parent is None
    else:
        trace_id, span_id, flags = expected
        assert (parent.trace_id, parent.span_id) == (int(trace_id, 16), int(span_id, 16))
        assert parent.trace_flags == flags
        assert parent.is_remote


@pytest.mark.parametrize(("values", "members"), STATES)
def test_tracestate(values, members, caplog) -> None:
    """An invalid tracestate is dropped alone, and its text stays out of the log."""
    headers = [("traceparent", PARENT), *(("tracestate", value) for value in values)]
    with caplog.at_level(logging.DEBUG):
        parent = remote_parent(tuple(headers))
    assert dict(parent.trace_state) == members
    assert list(parent.trace_state) == list(members)
    assert not caplog.records


@given(st.sampled_from(["traceparent", "tracestate", "b3", "x-b3-traceid"]), st.text())
def test_no_header_breaks_it(name, value) -> None:
    """Whatever a peer sends."""
    remote_parent(((name, value), ("x-b3-spanid", SPAN)))


@pytest.mark.parametrize("direction", [Direction.INGRESS, Direction.EGRESS_INTERNAL])
def test_child_of_the_caller(direction, make_transaction) -> None:
    """A request with a traceparent joins that trace, its own id new, the tracestate carried on."""
    identity = SpanIdentifier()(
        make_transaction(
            direction=direction,
            request_headers=(("traceparent", PARENT), ("tracestate", "a=1")),
        )
    )
    assert identity.context.trace_id == identity.parent.trace_id == int(TRACE, 16)
    assert identity.parent.span_id == int(SPAN, 16)
    assert identity.context.span_id not in (0, identity.parent.span_id)
    assert dict(identity.context.trace_state) == {"a": "1"}
    assert not identity.context.is_remote


def test_own_trace(make_transaction) -> None:
    """Without a caller each request has a trace of its own, the same for whoever asks."""
    identify, other_agent = SpanIdentifier(), SpanIdentifier()
    first = make_transaction(request_id="d3kq1f0t8s4c73a1b2c0")
    second = make_transaction(request_id="d3kq1f0t8s4c73a1b2cg")

    identity = identify(first)
    assert identity.parent is None
    assert identity.context.is_valid
    assert identity.context.trace_flags.sampled
    assert identify(first) == identity
    ids = {
        (place.context.trace_id, place.context.span_id)
        for place in (identity, identify(second), other_agent(first))
    }
    assert len(ids) == 3
