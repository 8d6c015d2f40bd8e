"""What a transaction says of itself: its URL, its parts, its copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Peer
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
