"""What of a conversation survives when bytes are missing, or make no sense."""

from __future__ import annotations

import pytest
from conversations import Capture, Script, play, told
from messages import (
    GET,
    GET_B,
    GET_C,
    GET_D,
    HEAD,
    NOT_FOUND,
    OK,
    OK_CHUNKED,
    OK_HEAD,
    POST,
    POST_CHUNKED,
)

from otel_qtap.transaction.model import Ending

# Loss --------------------------------------------------------------------------------


def test_a_lost_request_costs_itself(role) -> None:
    """Its answer is an orphan; the exchange after it is whole."""
    script, capture = Script(role), Capture()
    script.ask(GET, seen=False)
    script.answer(NOT_FOUND)
    script.ask(GET_B)
    script.answer(OK)

    assert told(capture.play(script)) == [("/b", 200, Ending.COMPLETE)]
    assert capture.counters.value("otel_qtap.assembler.orphan_responses") == 1


def test_a_lost_answer_costs_one_more_exchange_and_no_wrong_pair(role) -> None:
    """
    The answer after the hole could be to a request that was lost with the answer before.

    Only the next request shows that none was, and that would be late.
    """
    script = Script(role)
    script.ask(GET)
    script.answer(OK, seen=False)
    script.ask(GET_B)
    script.answer(NOT_FOUND)
    script.ask(GET_C)
    script.answer(OK)

    assert told(play(script)) == [
        ("/a", None, Ending.LOST),
        ("/b", None, Ending.LOST),
        ("/c", 200, Ending.COMPLETE),
    ]


def test_an_answer_and_the_next_request_lost_together_give_no_wrong_pair(role) -> None:
    """The answer that comes is to the request that was lost, not to the one that waits."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK, seen=False)
    script.ask(GET_B, seen=False)
    script.answer(NOT_FOUND)
    script.ask(GET_C)
    script.answer(OK)

    assert told(play(script)) == [("/a", None, Ending.LOST), ("/c", 200, Ending.COMPLETE)]


def test_a_lost_exchange_leaves_no_trace_but_the_one_after(role) -> None:
    """Whole exchanges can go unseen; then the next one is not trusted."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK)
    script.ask(GET_B, seen=False)
    script.answer(NOT_FOUND, seen=False)
    script.ask(GET_C)
    script.answer(OK)
    script.ask(GET_D)
    script.answer(OK)

    assert told(play(script)) == [
        ("/a", 200, Ending.COMPLETE),
        ("/c", None, Ending.LOST),
        ("/d", 200, Ending.COMPLETE),
    ]


def test_bytes_lost_in_a_sized_body_cost_only_those_bytes(role) -> None:
    """The content length says where the message ends; what is kept of it is true."""
    script = Script(role)
    script.ask(POST + b"012")
    script.ask(b"345", seen=False)
    script.ask(b"6789")
    script.answer(OK_HEAD + b"h")
    script.answer(b"ell", seen=False)
    script.answer(b"o")

    (transaction,) = play(script)

    assert told([transaction]) == [("/a", 200, Ending.COMPLETE)]
    assert (transaction.request.body.content, transaction.request.body.size) == (b"012", 10)
    assert (transaction.response.body.content, transaction.response.body.size) == (b"h", 5)
    assert transaction.request.body.is_truncated
    assert transaction.response.body.is_truncated


def test_bytes_lost_in_a_chunked_request_leave_it_its_answer(role) -> None:
    """Nobody knows its end, but it is still the request that is being answered."""
    script = Script(role)
    script.ask(POST_CHUNKED + b"5\r\nhello\r\n")
    script.ask(b"5\r\nworld\r\n", seen=False)
    script.ask(b"0\r\n\r\n")
    script.answer(OK)
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    transactions = play(script)

    assert told(transactions) == [("/a", 200, Ending.COMPLETE), ("/b", 404, Ending.COMPLETE)]
    assert transactions[0].timings.request_end_ns == 0


def test_bytes_lost_in_a_chunked_answer_end_it_as_lost(role) -> None:
    """With the status that was seen; the next exchange is whole again."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK_CHUNKED + b"5\r\nhello\r\n")
    script.answer(b"5\r\nworld\r\n", seen=False)
    script.answer(b"0\r\n\r\n")
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    transactions = play(script)

    assert told(transactions) == [("/a", 200, Ending.LOST), ("/b", 404, Ending.COMPLETE)]
    assert transactions[0].timings.response_end_ns == 0


def test_bytes_lost_in_a_request_head_cost_that_request(role) -> None:
    """It is counted, since it can be no transaction."""
    script, capture = Script(role), Capture()
    script.ask(GET[:9])
    script.ask(GET[9:20], seen=False)
    script.ask(GET[20:])
    script.answer(OK)
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    assert told(capture.play(script)) == [("/b", 404, Ending.COMPLETE)]
    assert capture.counters.value("otel_qtap.assembler.incomplete_requests") == 1


def test_bytes_lost_in_an_answer_head_cost_that_exchange(role) -> None:
    """The request is told without an answer."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK[:9])
    script.answer(OK[9:20], seen=False)
    script.answer(OK[20:])
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    assert told(play(script)) == [("/a", None, Ending.LOST), ("/b", 404, Ending.COMPLETE)]


def test_a_lost_interim_answer_costs_that_exchange(role) -> None:
    """What was lost might have been the answer."""
    script = Script(role)
    script.ask(GET)
    script.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n", seen=False)
    script.answer(OK)
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    assert told(play(script)) == [("/a", None, Ending.LOST), ("/b", 404, Ending.COMPLETE)]


def test_bytes_that_were_not_copied_count_as_passed(role) -> None:
    """The kernel side copies no more than it was told; the size is still that of the call."""
    script = Script(role)
    script.ask(GET)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n"
    script.answer_cut(head + b"hello", len(head) + 50000)
    script.ask(GET_B)
    script.answer(OK)

    transactions = play(script)

    assert told(transactions) == [("/a", 200, Ending.COMPLETE), ("/b", 200, Ending.COMPLETE)]
    assert (transactions[0].response.body.content, transactions[0].response.body.size) == (
        b"hello",
        50000,
    )


def test_an_unexpected_body_cannot_swallow_the_answers_that_follow(role) -> None:
    """
    The answer to a lost HEAD request looks as if it had a body of 90 bytes.

    Two answers of that size follow: the third must not be taken for the first.
    """
    script = Script(role)
    script.ask(HEAD, seen=False)
    script.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n")
    for number, request in enumerate((GET, GET_B, GET_C)):
        script.ask(request)
        answer = b"HTTP/1.1 20%d OK\r\ncontent-length: 0\r\nx: " % number
        script.answer(answer + b"y" * (45 - len(answer) - 4) + b"\r\n\r\n")

    assert told(play(script)) == [
        ("/a", 200, Ending.COMPLETE),
        ("/b", 201, Ending.COMPLETE),
        ("/c", 202, Ending.COMPLETE),
    ]


def test_after_loss_a_client_that_pipelines_is_not_trusted_again(role) -> None:
    """Its next answer may be to any of its requests."""
    script = Script(role)
    script.ask(GET + GET_B)
    script.answer(OK)
    script.answer(OK, seen=False)
    script.ask(GET_C)
    script.answer(NOT_FOUND)
    script.ask(GET_D)
    script.answer(NOT_FOUND)

    assert told(play(script)) == [
        ("/a", 200, Ending.COMPLETE),
        ("/b", None, Ending.LOST),
        ("/c", None, Ending.LOST),
        ("/d", None, Ending.LOST),
    ]


def test_pipelining_that_was_lost_shows_in_the_answers(role) -> None:
    """
    Between two requests nothing passed but the answer to the first, and yet one is missing.

    So the client did not wait, and the answer that comes is to the one that is missing.
    """
    script = Script(role)
    script.ask(GET)
    script.ask(GET_B, seen=False)
    script.answer(OK)
    script.ask(GET_C)
    script.answer(NOT_FOUND)
    script.ask(GET_D)
    script.answer(OK)

    assert told(play(script)) == [
        ("/a", 200, Ending.COMPLETE),
        ("/c", None, Ending.LOST),
        ("/d", None, Ending.LOST),
    ]


def test_two_answers_in_a_row_show_that_two_requests_came_in_a_row(role) -> None:
    """Then answers may be under way when the next request comes."""
    script = Script(role)
    script.ask(GET)
    script.ask(GET_B + GET_C, seen=False)
    script.answer(OK + OK)
    script.ask(GET_D)
    script.answer(NOT_FOUND)

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE), ("/d", None, Ending.LOST)]


# Bytes that are not HTTP -------------------------------------------------------------


def test_an_unreadable_answer_ends_its_exchange(role) -> None:
    """Counted, told as unreadable, and the connection is read on."""
    script, capture = Script(role), Capture()
    script.ask(GET)
    script.answer(b"HTTP/1.1 twohundred\r\n\r\n")
    script.ask(GET_B)
    script.answer(OK)

    assert told(capture.play(script)) == [
        ("/a", None, Ending.UNREADABLE),
        ("/b", 200, Ending.COMPLETE),
    ]
    assert capture.counters.value("otel_qtap.assembler.parse_errors") == 1


def test_an_unreadable_answer_body_ends_its_exchange(role) -> None:
    """With the status that was seen."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK_CHUNKED + b"zzz\r\n")

    assert told(play(script)) == [("/a", 200, Ending.UNREADABLE)]


def test_an_unreadable_request_does_not_take_the_next_ones_answer(role) -> None:
    """The server's answer to it is an orphan."""
    script, capture = Script(role), Capture()
    script.ask(b"GET\r\n\r\n")
    script.answer(NOT_FOUND)
    script.ask(GET_B)
    script.answer(OK)

    assert told(capture.play(script)) == [("/b", 200, Ending.COMPLETE)]
    assert capture.counters.value("otel_qtap.assembler.parse_errors") == 1


# Late to the conversation ------------------------------------------------------------

_MIDDLES = [
    pytest.param([], id="idle"),
    pytest.param([("ask", b"5678"), ("answer", OK)], id="request-body-and-answer"),
    pytest.param([("answer", OK)], id="answer"),
    pytest.param([("answer", b"llo")], id="in-answer-body"),
    pytest.param([("answer", b"5\r\nhello\r\n"), ("answer", b"0\r\n\r\n")], id="in-chunks"),
    pytest.param([("ask", b"t: h\r\n\r\n"), ("answer", OK)], id="in-request-head"),
    pytest.param([("answer", b"gth: 5\r\n\r\nhello")], id="in-answer-head"),
]


@pytest.mark.parametrize("middle", _MIDDLES)
def test_who_joins_late_begins_with_the_next_request(role, middle) -> None:
    """Whatever was going on; the transactions say that the agent came late."""
    script = Script(role, joined_late=True, offset=123456)
    for who, data in middle:
        getattr(script, who)(data)
    for request, answer in ((GET_B, NOT_FOUND), (GET_C, OK)):
        script.ask(request)
        script.answer(answer)

    transactions = play(script)

    assert told(transactions) == [("/b", 404, Ending.COMPLETE), ("/c", 200, Ending.COMPLETE)]
    assert all(t.joined_late for t in transactions)
