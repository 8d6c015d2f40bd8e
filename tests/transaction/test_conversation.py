"""One conversation at a time: what is asked, what is answered, and how it can end."""

from __future__ import annotations

import pytest
from conversations import EPOCH_OFFSET_NS, Capture, Script, play, told
from messages import (
    GET,
    GET_B,
    GET_C,
    HEAD,
    NOT_FOUND,
    OK,
    OK_CHUNKED,
    OK_HEAD,
    POST,
    POST_CHUNKED,
    SWITCH,
    UNTIL_CLOSE,
)

from otel_qtap.events import CloseStep, Role
from otel_qtap.transaction.model import Ending

ETIMEDOUT, EPIPE, ECONNRESET = 110, 32, 104


# Order -------------------------------------------------------------------------------


def test_keep_alive_gives_each_request_its_own_answer(role) -> None:
    """In order, each emitted when its answer is over."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK)
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE), ("/b", 404, Ending.COMPLETE)]


def test_pipelined_requests_are_answered_in_order(role) -> None:
    """Even when answers and further requests cross on their way."""
    script = Script(role)
    script.ask(GET + GET_B)
    script.answer(OK)
    script.ask(GET_C)
    script.answer(NOT_FOUND + OK)

    assert told(play(script)) == [
        ("/a", 200, Ending.COMPLETE),
        ("/b", 404, Ending.COMPLETE),
        ("/c", 200, Ending.COMPLETE),
    ]


def test_a_request_sent_in_the_middle_of_an_answer_head_costs_nothing(role) -> None:
    """Bytes of the answer have passed, but no answer is over: nothing was lost."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK[:9])
    script.ask(GET_B)
    script.answer(OK[9:])
    script.answer(NOT_FOUND)

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE), ("/b", 404, Ending.COMPLETE)]


def test_an_answer_to_head_has_no_body(role) -> None:
    """Its content length is that of the answer to GET; the next answer follows at once."""
    script = Script(role)
    script.ask(HEAD)
    script.answer(OK_HEAD)
    script.ask(GET_B)
    script.answer(NOT_FOUND)

    transactions = play(script)

    assert told(transactions) == [("/a", 200, Ending.COMPLETE), ("/b", 404, Ending.COMPLETE)]
    assert transactions[0].response.body.size == 0


def test_an_early_answer_waits_for_the_rest_of_its_request(role) -> None:
    """The transaction is complete when both messages are; the request is told whole."""
    script = Script(role)
    capture = Capture()
    script.ask(POST + b"01234")
    answered = script.answer(NOT_FOUND)
    assert capture.play(script) == []

    rest = Script(role)
    rest.__dict__.update(script.__dict__ | {"events": []})
    end = rest.ask(b"56789")
    rest.ask(GET_B)
    rest.answer(OK)

    transactions = capture.play(rest)

    assert told(transactions) == [("/a", 404, Ending.COMPLETE), ("/b", 200, Ending.COMPLETE)]
    times = transactions[0].timings
    assert transactions[0].request.body.content == b"0123456789"
    assert (times.response_end_ns, times.request_end_ns, times.end_ns) == (answered, end, end)


def test_an_early_answer_is_complete_even_if_its_request_never_is(role) -> None:
    """A server that refuses an upload and closes has answered it."""
    script = Script(role)
    script.ask(POST + b"01234")
    answered = script.answer(NOT_FOUND)
    script.server_closes()
    script.destroyed()

    (transaction,) = play(script)

    assert told([transaction]) == [("/a", 404, Ending.COMPLETE)]
    assert transaction.timings.request_end_ns == 0
    assert transaction.timings.response_end_ns == answered
    assert transaction.request.body.size == 5


# Other protocols ---------------------------------------------------------------------


def test_an_upgrade_ends_http(role) -> None:
    """The 101 ends the transaction; what follows is another protocol's."""
    script = Script(role)
    script.ask(b"GET /a HTTP/1.1\r\nupgrade: websocket\r\n\r\n")
    switched = script.answer(SWITCH + b"\x81\x05hello")
    script.ask(GET_B)
    script.answer(OK)
    script.destroyed()

    (transaction,) = play(script)

    assert told([transaction]) == [("/a", 101, Ending.UPGRADED)]
    assert transaction.timings.end_ns == switched


def test_a_refused_upgrade_is_an_ordinary_answer(role) -> None:
    """HTTP goes on."""
    script = Script(role)
    script.ask(b"GET /a HTTP/1.1\r\nupgrade: websocket\r\n\r\n")
    script.answer(OK)
    script.ask(GET_B)
    script.answer(OK)

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE), ("/b", 200, Ending.COMPLETE)]


def test_connect_makes_a_tunnel_when_it_is_granted(role) -> None:
    """A 200 to CONNECT has no body: what follows is the tunnel."""
    script = Script(role)
    script.ask(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n")
    script.answer(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x01")
    script.ask(b"\x16\x03\x01")
    script.destroyed()

    assert told(play(script)) == [("db:5432", 200, Ending.UPGRADED)]


def test_connect_that_is_refused_has_an_answer_with_a_body(role) -> None:
    """And the connection can be used again."""
    script = Script(role)
    script.ask(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n")
    script.answer(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
    script.ask(GET_B)
    script.answer(OK)

    transactions = play(script)

    assert told(transactions) == [
        ("db:5432", 403, Ending.COMPLETE),
        ("/b", 200, Ending.COMPLETE),
    ]
    assert transactions[0].response.body.content == b"no"


# Ends --------------------------------------------------------------------------------


def test_an_answer_without_length_is_complete_when_the_server_closes(role) -> None:
    """Its end is its last byte, not the close that came later."""
    script = Script(role)
    script.ask(GET)
    last = script.answer(UNTIL_CLOSE)
    script.now_ns += 5_000_000
    script.server_closes()
    script.destroyed()

    (transaction,) = play(script)

    assert told([transaction]) == [("/a", 200, Ending.COMPLETE)]
    assert transaction.timings.response_end_ns == last
    assert transaction.response.body.content == b"hello"


def test_an_answer_without_length_is_not_complete_when_the_connection_is_reset(role) -> None:
    """Nobody can say that it was all."""
    script = Script(role)
    script.ask(GET)
    script.answer(UNTIL_CLOSE)
    script.step(CloseStep.RESET, ECONNRESET)
    script.destroyed()

    assert told(play(script)) == [("/a", 200, Ending.RESET)]


_PLACES = [
    pytest.param([GET], [], None, id="before-answer"),
    pytest.param([POST + b"0123"], [], None, id="in-request-body"),
    pytest.param([POST_CHUNKED + b"5\r\nhe"], [], None, id="in-request-chunk"),
    pytest.param([GET], [OK[:9]], None, id="in-answer-head"),
    pytest.param([GET], [OK_HEAD + b"he"], 200, id="in-answer-body"),
    pytest.param([GET], [OK_CHUNKED + b"5\r\nhello\r\n"], 200, id="in-answer-chunks"),
    pytest.param([POST], [b"HTTP/1.1 100 Continue\r\n\r\n"], None, id="after-interim"),
]
_WAYS = [
    pytest.param(lambda s: s.client_closes(), Ending.CLIENT_CLOSED, id="client-closes"),
    pytest.param(lambda s: s.server_closes(), Ending.SERVER_CLOSED, id="server-closes"),
    pytest.param(lambda s: s.step(CloseStep.RESET, ECONNRESET), Ending.RESET, id="reset"),
    pytest.param(lambda s: s.step(CloseStep.CALL_FAILED, EPIPE), Ending.RESET, id="broken-pipe"),
    pytest.param(lambda s: s.step(CloseStep.RESET, ETIMEDOUT), Ending.TIMED_OUT, id="timeout"),
]


@pytest.mark.parametrize(("way", "ending"), _WAYS)
@pytest.mark.parametrize(("asked", "answered", "status"), _PLACES)
def test_an_exchange_that_is_cut_short_says_who_or_what_cut_it(
    role, way, ending, asked, answered, status
) -> None:
    """At every point of it, with what was seen until then, and no end that never was."""
    script = Script(role)
    for data in asked:
        script.ask(data)
    for data in answered:
        script.answer(data)
    way(script)
    end = script.destroyed()

    (transaction,) = play(script)

    assert told([transaction]) == [("/a", status, ending)]
    assert transaction.timings.response_end_ns == 0
    assert transaction.timings.request_start_ns < transaction.timings.end_ns <= end
    is_request_over = asked == [GET]
    assert bool(transaction.timings.request_end_ns) == is_request_over


@pytest.mark.parametrize(("way", "_ending"), _WAYS)
def test_a_connection_that_ends_between_exchanges_ends_none(role, way, _ending) -> None:
    """What was complete stays so, and there is nothing more to tell."""
    script = Script(role)
    script.ask(GET)
    script.answer(OK)
    way(script)
    script.destroyed()

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE)]


@pytest.mark.parametrize(("way", "_ending"), _WAYS)
def test_a_request_head_that_never_ends_is_counted(role, way, _ending) -> None:
    """It is no transaction: not even its method is certain."""
    script, capture = Script(role), Capture()
    script.ask(GET[:9])
    way(script)
    script.destroyed()

    assert capture.play(script) == []
    assert capture.counters.value("otel_qtap.assembler.incomplete_requests") == 1


def test_a_client_that_stops_sending_still_gets_its_answer(role) -> None:
    """A half-closed connection is no aborted exchange."""
    script = Script(role)
    script.ask(GET)
    script.client_closes()
    script.answer(OK)
    script.destroyed()

    assert told(play(script)) == [("/a", 200, Ending.COMPLETE)]


def test_a_process_that_drops_a_connection_without_error_closed_it() -> None:
    """No error on the socket: it was this end that reset it (SO_LINGER 0)."""
    for role, ending in (
        (Role.SERVER, Ending.SERVER_CLOSED),
        (Role.CLIENT, Ending.CLIENT_CLOSED),
    ):
        script = Script(role)
        script.ask(GET)
        script.step(CloseStep.RESET, 0)
        script.destroyed()

        assert told(play(script)) == [("/a", None, ending)]


def test_the_first_cause_is_the_one_that_is_told(role) -> None:
    """A reset that follows a timeout does not hide it."""
    script = Script(role)
    script.ask(GET)
    script.step(CloseStep.CALL_FAILED, ETIMEDOUT)
    script.step(CloseStep.RESET, ECONNRESET)
    script.destroyed()

    assert told(play(script)) == [("/a", None, Ending.TIMED_OUT)]


def test_pipelined_requests_share_the_end_of_their_connection(role) -> None:
    """One was being answered, one had no answer: both are told, in order."""
    script = Script(role)
    script.ask(GET + GET_B)
    script.answer(OK_HEAD + b"he")
    script.server_closes()
    script.destroyed()

    assert told(play(script)) == [
        ("/a", 200, Ending.SERVER_CLOSED),
        ("/b", None, Ending.SERVER_CLOSED),
    ]


@pytest.mark.parametrize(("asked", "answered", "status"), _PLACES)
def test_what_runs_when_the_agent_stops_is_unfinished(role, asked, answered, status) -> None:
    """With what was seen of it until then."""
    script, capture = Script(role), Capture()
    for data in asked:
        script.ask(data)
    for data in answered:
        script.answer(data)
    capture.play(script)
    capture.tracker.close(script.now_ns + 5)

    assert told(capture.transactions) == [("/a", status, Ending.UNFINISHED)]
    assert capture.transactions[0].timings.end_ns == script.now_ns + 5 + EPOCH_OFFSET_NS
