"""Trace and span ids: the caller's trace where it is named, the same answer for everybody."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.exporters.identity import SpanIdentifier, remote_parent
from otel_qtap.transaction.link import Ancestor, Candidate, Link, LinkMethod
from otel_qtap.transaction.model import Direction, Ending

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


# Chains of proxies ----------------------------------------------------------------------

OTHER_SPAN = "53995c3f42cd8ad8"
OTHER = f"00-{TRACE}-{OTHER_SPAN}-01"
ELSEWHERE = f"00-{'4b' * 16}-{OTHER_SPAN}-01"


def traceparent(value):
    return (("traceparent", value),) if value else ()


@dataclass
class Node:
    """A request as one of its ends saw it, with all that the linker knows of it."""

    name: str
    kind: str
    headers: tuple = ()
    parent: Node | None = None
    is_first_sent: bool = False
    begun: tuple = ()
    ending: Ending = Ending.COMPLETE

    @property
    def lineage(self):
        context = tuple(item for item in self.headers if item[0] != "host")
        own = Ancestor(self.name, context, is_first_sent=self.is_first_sent, begun=self.begun)
        return (own, *(self.parent.lineage if self.parent else ()))

    def transaction(self):
        link = None
        if self.parent is not None:
            method = LinkMethod.CONNECTION if self.kind == "SERVER" else LinkMethod.STREAM
            ancestors = self.parent.lineage
            link = Link(
                method=method,
                parent_id=self.parent.name,
                root_id=ancestors[-1].request_id,
                ancestors=ancestors,
                is_first_sent=self.is_first_sent,
            )
        is_server = self.kind == "SERVER"
        return factories.make_transaction(
            request_id=self.name,
            direction=Direction.INGRESS if is_server else Direction.EGRESS_INTERNAL,
            request_headers=(("host", "shop"), *self.headers),
            link=link,
            begun=self.begun,
            ending=self.ending,
        ).reduced_to(CaptureLevel.SUMMARY)


def proxied(received, *sent, begun=""):
    """A client's request, and what a proxy made of it; ``None`` for a connect that failed."""
    server = Node("server", "SERVER", traceparent(received), begun=traceparent(begun))
    attempts = []
    for number, value in enumerate(sent):
        is_first = value is not None and all(each is None for each in sent[:number])
        ending = Ending.CONNECT_FAILED if value is None else Ending.COMPLETE
        attempts.append(
            Node(f"attempt-{number}", "CLIENT", traceparent(value), server, is_first, (), ending)
        )
    return server, attempts


def identities(*nodes):
    identify = SpanIdentifier(b"key")
    return [identify(node.transaction()) for node in nodes]


PROXIES = [
    pytest.param("", [""], [None], id="no-context"),
    pytest.param(PARENT, [PARENT], [None], id="passed-on"),
    pytest.param(PARENT, [OTHER], [OTHER_SPAN], id="another-span"),
    pytest.param(PARENT, [""], [None], id="dropped"),
    pytest.param(PARENT, [ELSEWHERE], [None], id="another-trace"),
    pytest.param(PARENT, [OTHER, OTHER], [OTHER_SPAN, None], id="retry-says-the-same"),
    pytest.param(PARENT, [None, OTHER], [None, OTHER_SPAN], id="after-a-failed-connect"),
]


@pytest.mark.parametrize(("received", "sent", "ids"), PROXIES)
def test_attempts_are_children_of_their_request(received, sent, ids) -> None:
    """
    By ids of their own, or by the one that the proxy sent if it is the proxy's.

    Once only: two spans must not have the same id.
    """
    server, attempts = proxied(received, *sent)
    of_server, *of_attempts = identities(server, *attempts)

    for identity in of_attempts:
        assert identity.context.trace_id == of_server.context.trace_id
        assert identity.parent.span_id == of_server.context.span_id
        assert not identity.parent.is_remote
        assert bool(identity.links) == (ELSEWHERE in sent)
    found = [f"{identity.context.span_id:016x}" for identity in of_attempts]
    assert [a for a, b in zip(found, ids, strict=True) if b] == [b for b in ids if b]
    taken = {SPAN, OTHER_SPAN}
    assert not taken & {a for a, b in zip(found, ids, strict=True) if not b}
    assert (of_server.parent is None) == (not received)


def test_a_trace_that_the_proxy_begins_is_the_trace_of_its_client_too() -> None:
    """Else what the backends do would be in another one than what made them do it."""
    server, attempts = proxied("", PARENT, begun=PARENT)
    of_server, of_attempt = identities(server, *attempts)

    assert f"{of_server.context.trace_id:032x}" == TRACE
    assert of_server.parent is None
    assert f"{of_attempt.context.span_id:016x}" == SPAN
    assert of_attempt.parent.span_id == of_server.context.span_id


def test_a_trace_that_goes_on_elsewhere_is_linked_to() -> None:
    """The span stays in the trace of its client and points to the one that the backend is in."""
    server, attempts = proxied(PARENT, ELSEWHERE)
    (identity,) = identities(*attempts)

    assert f"{identity.context.trace_id:032x}" == TRACE
    (link,) = identity.links
    assert (f"{link.trace_id:032x}", f"{link.span_id:016x}") == ("4b" * 16, OTHER_SPAN)
    assert identities(server)[0].links == ()


def test_the_neighbour_is_a_child_of_the_request_it_got() -> None:
    """Also where that goes by an id that the proxy sent; the other end of a wire is remote."""
    _, (attempt,) = proxied(PARENT, OTHER)
    neighbour = Node("neighbour", "SERVER", attempt.headers, attempt)
    (identity,) = identities(neighbour)

    assert f"{identity.parent.span_id:016x}" == OTHER_SPAN
    assert identity.parent.is_remote
    assert identity.context.span_id != identity.parent.span_id


def test_the_tracestate_of_the_request_itself_goes_before_that_of_the_root() -> None:
    """It is what was passed on; a proxy that drops it does not take it out of the trace."""
    server = Node("server", "SERVER", (*traceparent(PARENT), ("tracestate", "a=1")))
    kept = Node("kept", "CLIENT", (*traceparent(PARENT), ("tracestate", "b=2,a=1")), server)
    dropped = Node("dropped", "CLIENT", traceparent(PARENT), server)

    astray = Node("astray", "CLIENT", (*traceparent(ELSEWHERE), ("tracestate", "c=3")), server)

    found = identities(server, kept, dropped, astray)
    states = [dict(identity.context.trace_state) for identity in found]
    assert states == [{"a": "1"}, {"b": "2", "a": "1"}, {"a": "1"}, {"a": "1"}]


@pytest.mark.parametrize("root_headers", [(), traceparent(PARENT)])
def test_candidates_are_linked_by_the_ids_of_their_spans(root_headers, make_transaction) -> None:
    """No parent where the evidence is ambiguous, but links to all that may be it."""
    possible = Node("possible", "SERVER", root_headers)
    unsure = make_transaction(
        direction=Direction.EGRESS_INTERNAL,
        candidates=(
            Candidate("possible", "possible", (("cookie", "secret"), *root_headers)),
            Candidate("other", "root", ()),
        ),
    ).reduced_to(CaptureLevel.FULL)
    identify = SpanIdentifier(b"key")
    identity = identify(unsure)
    first, second = identity.links

    assert identity.parent is None
    expected = identify(possible.transaction()).context
    assert (first.trace_id, first.span_id) == (expected.trace_id, expected.span_id)
    root = identify(Node("root", "SERVER").transaction()).context
    assert second.trace_id == root.trace_id
    assert second.span_id == identify(Node("other", "SERVER").transaction()).context.span_id


REWRITES = {
    "pass": lambda value, _caller, _ids: value,
    "drop": lambda _value, _caller, _ids: "",
    "restore": lambda _value, caller, _ids: caller,
    "span": lambda value, _caller, ids: value and f"{value[:36]}{ids.pop()}-01",
    "trace": lambda _value, _caller, ids: f"00-{ids.pop()}{ids.pop()}-{ids.pop()}-01",
    "begin": lambda value, _caller, ids: value or f"00-{ids.pop()}{ids.pop()}-{ids.pop()}-01",
}
"""What a proxy makes of the ``traceparent`` that it got."""


@st.composite
def chains(draw):
    """
    A request on its way through proxies of this host, each with some attempts.

    Gives the ``traceparent`` of the caller, all requests, and what was sent as whose first.
    """
    id_ = st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}")
    ids = draw(st.lists(id_, min_size=12, max_size=12, unique=True))
    caller = draw(st.sampled_from(["", f"00-{ids.pop()}{ids.pop()}-{ids.pop()}-01"]))
    nodes = [Node("client", "CLIENT", traceparent(caller))] if draw(st.booleans()) else []
    value, rewritten = caller, {}
    for depth in range(draw(st.integers(1, 3))):
        server = Node(f"server-{depth}", "SERVER", traceparent(value), nodes[-1] if nodes else None)
        nodes.append(server)
        received, value = (
            value,
            REWRITES[draw(st.sampled_from(sorted(REWRITES)))](value, caller, ids),
        )
        if not caller and not nodes[0].begun:
            nodes[0].begun = traceparent(value)
        failures = draw(st.integers(0, 2))
        for number in range(failures):
            name, ending = f"failed-{depth}-{number}", Ending.CONNECT_FAILED
            nodes.append(Node(name, "CLIENT", (), server, ending=ending))
        for number in range(draw(st.integers(1, 3))):
            name = f"attempt-{depth}-{number}"
            nodes.append(Node(name, "CLIENT", traceparent(value), server, number == 0))
        if value not in ("", received):
            rewritten[f"attempt-{depth}-0"] = value
    return caller, nodes, rewritten


@given(chains())
def test_every_chain_is_one_trace(chain) -> None:
    """
    Whatever proxies do to the trace context on the way.

    One trace, that of the caller or of whoever began it; every parent is the span of the
    right transaction, as that gives itself; no id twice; and a span id that a proxy made up
    is that of the request which it sent, so that the backend's span hangs below it.
    """
    caller, nodes, rewritten = chain
    identify = SpanIdentifier(b"key")
    found = {node.name: identify(node.transaction()) for node in nodes}

    (trace_id,) = {identity.context.trace_id for identity in found.values()}
    if caller:
        assert f"{trace_id:032x}" == caller[3:35]
    for node in nodes:
        identity = found[node.name]
        if node.parent is not None:
            assert identity.parent.span_id == found[node.parent.name].context.span_id
            assert identity.parent.trace_id == trace_id
        elif caller:
            assert f"{identity.parent.span_id:016x}" == caller[36:52]
        else:
            assert identity.parent is None
    assert len({identity.context.span_id for identity in found.values()}) == len(nodes)
    seen = {caller[36:52]}
    for name, value in rewritten.items():
        is_same_trace = value[3:35] == f"{trace_id:032x}"
        if is_same_trace and value[36:52] not in seen:
            assert f"{found[name].context.span_id:016x}" == value[36:52]
        elif not is_same_trace:
            assert [f"{link.span_id:016x}" for link in found[name].links] == [value[36:52]]
        seen.add(value[36:52])


@given(chains())
def test_identities_do_not_depend_on_who_asks(chain) -> None:
    """Another thread, another order, another copy of the transaction: the same answer."""
    _, nodes, _ = chain
    identify = SpanIdentifier(b"key")
    forth = [identify(node.transaction()) for node in nodes]
    back = [SpanIdentifier(b"key")(node.transaction()) for node in reversed(nodes)]
    assert forth == back[::-1]
