"""What a transaction says of itself: its URL, its parts, its copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Peer
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.transaction.link import (
    Ancestor,
    Candidate,
    HeaderChanges,
    HopHeaders,
    Link,
    LinkMethod,
    trace_context,
)
from otel_qtap.transaction.model import Body, Direction, Ending, Timings, split_target

_TARGETS = [
    ("/", ("", "/", "")),
    ("/a/b?x=1&y=2", ("", "/a/b", "x=1&y=2")),
    ("/a?", ("", "/a", "")),
    ("/a?b?c", ("", "/a", "b?c")),
    ("*", ("", "*", "")),
    ("http://h:8080/a?x", ("h:8080", "/a", "x")),
    ("http://h", ("h", "/", "")),
    ("http://h?x=/y", ("h", "/", "x=/y")),
    ("https://user:secret@h/a", ("h", "/a", "")),
    ("//h/a", ("", "//h/a", "")),
    ("/a?u=http://x", ("", "/a", "u=http://x")),
    ("h:443", ("", "h:443", "")),
]


@pytest.mark.parametrize(("target", "parts"), _TARGETS)
def test_a_target_is_split_in_all_its_forms(target, parts) -> None:
    """Origin, absolute, authority and asterisk form; user info is left out."""
    assert split_target(target) == parts


@given(st.text(alphabet="/?:@.*ah", max_size=12))
def test_no_target_breaks_the_split(target) -> None:
    """Anything that a request line can hold."""
    _, path, query = split_target(target)
    assert "?" not in path
    assert query in target


_URLS = [
    pytest.param(
        "GET", "/api?x=1", (("Host", "shop:8085"),), "http://shop:8085/api?x=1", id="host"
    ),
    pytest.param("GET", "/api", (), "http://172.18.0.2:80/api", id="no-host"),
    pytest.param("GET", "http://a.b/c", (("host", "x"),), "http://a.b/c", id="absolute"),
    pytest.param("OPTIONS", "*", (("host", "h"),), "http://h/*", id="asterisk"),
    pytest.param("CONNECT", "db:5432", (("host", "h"),), "db:5432", id="connect"),
]


@pytest.mark.parametrize(("method", "target", "headers", "url"), _URLS)
def test_the_url_of_a_request_that_came_in_is_the_one_that_was_asked_for(
    make_transaction, method, target, headers, url
) -> None:
    """By what the client said, else by the address it came to."""
    transaction = make_transaction(method=method, target=target, request_headers=headers)

    assert transaction.url == url


def test_the_url_of_a_request_that_went_out_names_the_server_that_was_chosen(
    make_transaction,
) -> None:
    """A proxy passes the client's Host header on; its name, else its address, is the truth."""
    out = {"direction": Direction.EGRESS_INTERNAL, "target": "/a?b"}

    assert make_transaction(**out).url == "http://backend-api-1:8001/a?b"
    assert make_transaction(**out, remote_name="").url == "http://172.18.0.3:8001/a?b"
    assert (
        make_transaction(**out, remote_name="", remote=Peer("fd00::1", 80)).url
        == "http://[fd00::1]:80/a?b"
    )
    assert make_transaction(**out).authority == "localhost:8085"


def test_path_and_query_are_parts_of_the_target(make_transaction) -> None:
    """Without the question mark between them."""
    transaction = make_transaction(target="http://h/a/b?c=d")

    assert (transaction.path, transaction.query) == ("/a/b", "c=d")


def test_headers_are_found_by_name_in_any_spelling(make_request, make_response) -> None:
    """The first of several; ``None`` if there is none."""
    headers = (("X-Id", "1"), ("x-id", "2"))

    assert make_request(headers=headers).header("x-id") == "1"
    assert make_response(headers=headers).header("x-id") == "1"
    assert make_request(headers=headers).header("x-other") is None


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (Ending.COMPLETE, None),
        (Ending.CLIENT_CLOSED, None),
        (Ending.SERVER_CLOSED, "server_closed"),
        (Ending.RESET, "connection_reset"),
        (Ending.TIMED_OUT, "timeout"),
        (Ending.CONNECT_FAILED, "connect_failed"),
        (Ending.LOST, None),
        (Ending.UNREADABLE, None),
        (Ending.UPGRADED, None),
        (Ending.UNFINISHED, None),
    ],
)
def test_only_what_kept_the_answer_away_is_an_error(ending, error) -> None:
    """A client that left, or bytes the agent lost, are not errors of the exchange."""
    assert ending.error_type == error


def test_every_ending_is_in_the_table_above() -> None:
    """A new one has to be thought about."""
    assert len(Ending) == 10


def test_a_body_is_cut_when_less_was_kept_than_passed() -> None:
    """An empty one is whole."""
    assert not Body().is_truncated
    assert not Body(content=b"abc", size=3).is_truncated
    assert Body(content=b"ab", size=3).is_truncated


def test_the_duration_ends_with_the_answer_or_with_what_ended_it() -> None:
    """And is never negative, whatever an early answer did."""
    assert Timings(request_start_ns=5, response_end_ns=25, end_ns=40).duration_ns == 20
    assert Timings(request_start_ns=5, end_ns=40).duration_ns == 35
    assert Timings(request_start_ns=5, response_end_ns=4, end_ns=6).duration_ns == 0


@pytest.mark.parametrize("level", [CaptureLevel.NONE, CaptureLevel.SUMMARY, CaptureLevel.HEADERS])
def test_levels_below_full_hold_no_payload(make_transaction, level) -> None:
    """Neither content nor trailers; sizes, headers and everything else stay."""
    original = make_transaction(request_body=b"secret", response_body=b"hidden", index=3)

    reduced = original.reduced_to(level, CaptureFormat.TEXT)

    assert (reduced.level, reduced.format) == (level, CaptureFormat.TEXT)
    assert reduced.request.body == Body(content=b"", size=6, wire_size=6)
    assert reduced.response.body == Body(content=b"", size=6, wire_size=6)
    assert reduced.request.headers == original.request.headers
    assert (reduced.index, reduced.timings, reduced.ending, reduced.process) == (
        3, original.timings, original.ending, original.process,
    )  # fmt: skip
    assert "secret" not in repr(reduced)


def test_reducing_changes_nothing_about_the_original(make_transaction) -> None:
    """Whoever was given it first still has all of it; an equal level is the same value."""
    original = make_transaction(request_body=b"secret")
    original.reduced_to(CaptureLevel.SUMMARY)

    assert original.request.body.content == b"secret"
    assert original.level is CaptureLevel.FULL
    assert original.reduced_to(CaptureLevel.FULL) is original
    assert original.reduced_to(CaptureLevel.FULL, CaptureFormat.TEXT).format is CaptureFormat.TEXT


def test_a_transaction_without_answer_can_be_reduced(make_transaction) -> None:
    """There is nothing to leave out of a response that never came."""
    assert make_transaction(status=None).reduced_to(CaptureLevel.SUMMARY).response is None


def test_trailers_go_with_the_bodies(make_transaction, make_request, make_response) -> None:
    """They are payload: what they hold is known no better than a body."""
    trailers = (("x-sum", "secret"),)
    reduced = make_transaction(
        request=make_request(trailers=trailers), response=make_response(trailers=trailers)
    ).reduced_to(CaptureLevel.HEADERS)

    assert reduced.request.trailers == reduced.response.trailers == ()


def test_payloads_and_headers_are_not_in_the_text_of_a_transaction(make_transaction) -> None:
    """``repr`` ends up in logs."""
    text = repr(
        make_transaction(request_body=b"secret-body", request_headers=(("a", "secret-header"),))
    )

    assert "secret" not in text


# What a proxy changed -------------------------------------------------------------------

_PARENT = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
_LEVELS = [CaptureLevel.SUMMARY, CaptureLevel.HEADERS, CaptureLevel.FULL]


_RECEIVED = (("Authorization", "Bearer secret-1"), ("Cookie", "secret-2"), _PARENT)
_SENT = (("authorization", "Bearer secret-1"), ("cookie", "secret-3"), ("x-key", "secret-4"))
_HOP = HopHeaders(_RECEIVED, _SENT, answered=(("set-cookie", "secret-5"),), passed_on=())


def everything_in(value):
    """All text in a value, the fields that ``repr`` leaves out included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple):
        return [text for item in value for text in everything_in(item)]
    names = getattr(type(value), "__slots__", ())
    return [text for name in names for text in everything_in(getattr(value, name))]


@pytest.mark.parametrize("level", _LEVELS)
def test_no_header_of_another_side_is_in_a_reduced_transaction(make_transaction, level) -> None:
    """Nobody redacts those, so they must not get into any queue; the trace context stays."""
    candidate = Candidate("c", "r", (("cookie", "secret-6"), _PARENT))
    original = make_transaction(hop_headers=_HOP, candidates=(candidate,))
    reduced = original.reduced_to(level, CaptureFormat.TEXT)

    assert "secret" in str(everything_in(original))
    assert "secret" not in str(everything_in(reduced))
    assert reduced.candidates == (Candidate("c", "r", (_PARENT,)),)
    assert "secret" not in repr(original) + repr(reduced)


@pytest.mark.parametrize("level", _LEVELS)
def test_what_the_proxy_changed_is_known_by_name(make_transaction, level) -> None:
    """At the levels that keep headers, and for as long as the level is one of them."""
    reduced = make_transaction(hop_headers=_HOP).reduced_to(level)

    if level is CaptureLevel.SUMMARY:
        assert reduced.hop_changes is None
        return
    request, response = reduced.hop_changes
    assert request == HeaderChanges(added=("x-key",), removed=("traceparent",), changed=("cookie",))
    assert response == HeaderChanges(removed=("set-cookie",))
    assert reduced.reduced_to(level) is reduced
    assert reduced.reduced_to(CaptureLevel.SUMMARY).hop_changes is None


def test_redaction_does_not_count_as_a_change(make_transaction) -> None:
    """The fields that were sent are compared, not what became of them for a display."""
    transaction = make_transaction(request_headers=_SENT, hop_headers=_HOP)
    reduced = Redactor().redact(transaction).reduced_to(CaptureLevel.FULL)

    assert reduced.request.header("authorization") == "REDACTED"
    assert reduced.hop_changes.request.changed == ("cookie",)


def test_without_an_answer_that_was_passed_on_only_the_request_is_compared(
    make_transaction,
) -> None:
    """An attempt whose answer was thrown away, for instance."""
    hop = HopHeaders((), (("a", "b"),))
    reduced = make_transaction(hop_headers=hop).reduced_to(CaptureLevel.HEADERS)

    assert reduced.hop_changes == (HeaderChanges(added=("a",)), None)


def test_a_link_knows_those_in_between() -> None:
    """And if it is not told, the two that it names."""
    link = Link(method=LinkMethod.STREAM, parent_id="parent", root_id="root")
    alone = Link(method=LinkMethod.STREAM, parent_id="root", root_id="root")

    assert link.ancestors == (Ancestor("parent"), Ancestor("root"))
    assert alone.ancestors == (Ancestor("root"),)


def test_a_transaction_can_be_kept_in_a_set(make_transaction) -> None:
    """With its links, like any other value."""
    link = Link(method=LinkMethod.STREAM, parent_id="parent", root_id="root")
    one, other = (make_transaction(link=link, hop_headers=_HOP) for _ in range(2))
    assert len({one, other}) == 1
    assert len({each.reduced_to(CaptureLevel.FULL) for each in (one, other)}) == 1


_NAMES = st.sampled_from(["a", "A", "b", "c"])
_HEADERS = st.lists(st.tuples(_NAMES, st.sampled_from(["1", "2"])), max_size=6).map(tuple)


@given(_HEADERS, _HEADERS)
def test_fields_are_compared_by_name_with_all_their_values_in_order(before, after) -> None:
    """The same as asking for each name; every name is in one of the lists or unchanged."""

    def values(headers, name):
        return [value for key, value in headers if key.lower() == name]

    names = {key.lower() for key, _ in before + after}
    changes = HeaderChanges.between(before, after)

    assert set(changes.added) == {n for n in names if not values(before, n)}
    assert set(changes.removed) == {n for n in names if not values(after, n)}
    assert set(changes.changed) == {
        n
        for n in names - set(changes.added) - set(changes.removed)
        if values(before, n) != values(after, n)
    }


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ((("Host", "h"), ("Cookie", "c")), ()),
        ((_PARENT, ("host", "h")), (_PARENT,)),
        ((("TraceState", "a=1"), ("B3", "0")), (("TraceState", "a=1"), ("B3", "0"))),
        ((("X-B3-TraceId", "1"), ("X-B3", "2")), (("X-B3-TraceId", "1"),)),
    ],
)
def test_the_trace_context_is_what_names_a_trace(headers, kept) -> None:
    """As it was sent, and nothing else."""
    assert trace_context(headers) == kept


_SPELLINGS = ["traceparent", "TraceParent", "b3", "B3", "x-b3-sampled", "Host", "host", "x" * 65]


@given(st.lists(st.tuples(st.sampled_from(_SPELLINGS) | st.text(max_size=3), st.just("v"))))
def test_the_trace_context_is_found_whatever_was_asked_before(headers) -> None:
    """In any spelling: what is remembered about names makes it faster, and nothing else."""
    names = {"traceparent", "b3", "x-b3-sampled"}
    expected = tuple(item for item in headers if item[0].lower() in names)

    assert trace_context(tuple(headers)) == expected
    assert trace_context(tuple(headers)) == expected
