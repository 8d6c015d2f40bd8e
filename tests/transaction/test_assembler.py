"""One conversation at a time: what is asked, what is answered, and how it can end."""

from __future__ import annotations

import pytest
from conversations import EPOCH_OFFSET_NS, TICK_NS, Capture, Script, play

from otel_qtap.connection.model import Peer
from otel_qtap.events import CloseStep, Role
from otel_qtap.transaction.assembler import AssemblerLimits
from otel_qtap.transaction.model import Direction, Ending

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
GET_B = b"GET /b HTTP/1.1\r\nhost: h\r\n\r\n"
GET_C = b"GET /c HTTP/1.1\r\nhost: h\r\n\r\n"
GET_D = b"GET /d HTTP/1.1\r\nhost: h\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nhost: h\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\ncontent-length: 10\r\n\r\n"
POST_CHUNKED = b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
OK_HEAD = OK[:-5]
OK_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"
ETIMEDOUT, EPIPE, ECONNRESET = 110, 32, 104


@pytest.fixture(params=[Role.SERVER, Role.CLIENT], ids=["server", "client"])
def role(request: pytest.FixtureRequest) -> Role:
    """Which end of the connection is watched: every story is told from both."""
    return request.param


def told(transactions) -> list[tuple[str, int | None, Ending]]:
    """What matters of transactions: target, status and ending."""
    return [(t.request.target, t.response and t.response.status, t.ending) for t in transactions]


# Times -------------------------------------------------------------------------------


def test_every_time_is_that_of_the_call_that_moved_the_byte(role) -> None:
    """First byte, end of head and end of both messages, on the clock of the world."""
    script = Script(role)
    times = [
        script.ask(POST[:9]),
        script.ask(POST[9:]),
        script.ask(b"01234"),
        script.ask(b"56789"),
        script.answer(OK[:9]),
        script.answer(OK_HEAD[9:]),
        script.answer(b"hel"),
        script.answer(b"lo"),
    ]

    (transaction,) = play(script)

    t = transaction.timings
    assert (t.request_start_ns, t.request_head_ns, t.request_end_ns) == (*times[:2], times[3])
    assert (t.response_start_ns, t.response_head_ns) == (times[4], times[5])
    assert t.response_end_ns == t.end_ns == times[7]
    assert t.duration_ns == 7 * TICK_NS
    assert times[0] > EPOCH_OFFSET_NS


def test_response_times_are_those_of_the_final_response(role) -> None:
    """An interim response is not the first byte of the answer; its status is told."""
    script = Script(role)
    script.ask(POST)
    script.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    script.ask(b"0123456789")
    script.answer(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
    final = script.answer(OK)

    (transaction,) = play(script)

    assert transaction.timings.response_start_ns == final
    assert transaction.response.status == 200
    assert transaction.response.interim_statuses == (100, 103)


def test_a_request_that_begins_in_the_bytes_of_another_begins_at_their_time(role) -> None:
    """The second of two pipelined requests in one call starts when that call did."""
    script = Script(role)
    first = script.ask(GET[:4])
    both = script.ask(GET[4:] + GET_B)
    script.answer(OK + NOT_FOUND)

    one, two = play(script)

    assert (one.timings.request_start_ns, two.timings.request_start_ns) == (first, both)


def test_connect_times_stand_on_the_first_transaction_of_an_outgoing_connection() -> None:
    """The second one of a keep-alive connection did not wait for a handshake."""
    script = Script(Role.CLIENT, connect_started_ns=500, established_ns=700)
    for request in (GET, GET_B):
        script.ask(request)
        script.answer(OK)

    first, second = play(script)

    assert first.timings.connect_start_ns == 500 + EPOCH_OFFSET_NS
    assert first.timings.connect_end_ns == 700 + EPOCH_OFFSET_NS
    assert (second.timings.connect_start_ns, second.timings.connect_end_ns) == (0, 0)


def test_accepted_connections_have_no_connect_times() -> None:
    """Connecting is what the other end did."""
    script = Script(Role.SERVER, connect_started_ns=500)
    script.ask(GET)
    script.answer(OK)

    (transaction,) = play(script)

    assert transaction.timings.connect_start_ns == transaction.timings.connect_end_ns == 0


def test_an_adjusted_clock_counts_from_the_next_transaction() -> None:
    """The offset to the wall clock can change while the agent runs."""
    script, capture = Script(), Capture()
    at = script.ask(GET)
    script.answer(OK)
    capture.assembler.epoch_offset_ns += 1_000_000_000

    (transaction,) = capture.play(script)

    assert transaction.timings.request_start_ns == at + 1_000_000_000


# Who and what ------------------------------------------------------------------------


def test_a_transaction_knows_its_ends_and_its_place() -> None:
    """Addresses, direction, process, thread, index and ids of a keep-alive connection."""
    script = Script(Role.CLIENT)
    for request in (GET, GET_B):
        script.ask(request)
        script.answer(OK)

    first, second = play(script)

    assert first.direction is Direction.EGRESS_INTERNAL
    assert (first.local, first.remote) == (Peer("172.18.0.2", 40404), Peer("172.18.0.3", 8001))
    assert (first.process.pid, first.process.name, first.thread_id) == (987, "haproxy", 988)
    assert (first.index, second.index) == (0, 1)
    assert first.connection_id == second.connection_id
    assert len({first.request_id, second.request_id, first.connection_id}) == 3
    assert not first.joined_late


def test_bodies_are_kept_with_their_sizes(role) -> None:
    """Content without framing; the wire size counts the framing too."""
    script = Script(role)
    script.ask(POST_CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n")
    script.answer(OK)

    (transaction,) = play(script)

    assert transaction.request.body.content == b"hello world"
    assert (transaction.request.body.size, transaction.request.body.wire_size) == (11, 36)
    assert transaction.request.trailers == (("x-sum", "1"),)
    assert transaction.response.body.content == b"hello"
    assert not transaction.response.body.is_truncated


def test_a_proxy_header_names_the_client_of_all_that_follows() -> None:
    """It comes once, before the first request."""
    script = Script()
    script.ask(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n")
    for request in (GET, GET_B):
        script.ask(request)
        script.answer(OK)

    transactions = play(script)

    assert [t.proxied_source for t in transactions] == [Peer("203.0.113.9", 4711)] * 2
    assert transactions[0].remote == Peer("192.0.2.7", 51234)


def test_a_proxy_header_without_addresses_names_nobody() -> None:
    """``UNKNOWN``, as health checks of a proxy send it."""
    script = Script()
    script.ask(b"PROXY UNKNOWN\r\n" + GET)
    script.answer(OK)

    (transaction,) = play(script)

    assert transaction.proxied_source is None


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


# Bounds ------------------------------------------------------------------------------


def test_more_requests_than_may_wait_are_given_up(role) -> None:
    """All that waited end as unfinished; no later answer is given to a wrong one."""
    script = Script(role)
    script.ask(GET * 3 + GET_B + GET_C)
    script.answer(OK * 4)
    script.answer(NOT_FOUND)

    assert told(play(script, pipelined=3)) == [
        *[("/a", None, Ending.UNFINISHED)] * 3,
        ("/b", None, Ending.UNFINISHED),
        ("/c", None, Ending.LOST),
    ]


def test_no_more_of_a_body_is_kept_than_asked_for(role) -> None:
    """Its size is told in full."""
    script = Script(role)
    script.ask(POST + b"0123456789")
    script.answer(OK)

    (transaction,) = play(script, body_bytes=4)

    assert (transaction.request.body.content, transaction.request.body.size) == (b"0123", 10)
    assert (transaction.response.body.content, transaction.response.body.size) == (b"hell", 5)


def test_bodies_are_not_kept_when_none_is_wanted(role) -> None:
    """Only measured."""
    script = Script(role)
    script.ask(POST + b"0123456789")
    script.answer(OK)

    (transaction,) = play(script, body_bytes=0)

    assert (transaction.request.body.content, transaction.request.body.size) == (b"", 10)


def test_bodies_of_all_connections_share_one_budget() -> None:
    """What does not fit is not kept and counted; what is emitted makes room again."""
    capture = Capture(AssemblerLimits(memory_bytes=12))
    first, second = Script(connection_id=1), Script(connection_id=2)
    first.ask(POST + b"0123456789")
    second.ask(POST + b"0123456789")
    capture.play(first)
    capture.play(second)
    first.events, second.events = [], []
    first.answer(NOT_FOUND)
    second.answer(NOT_FOUND)
    first.ask(POST + b"0123456789")
    first.answer(NOT_FOUND)
    capture.play(second)
    capture.play(first)

    kept = [t.request.body.content for t in capture.transactions]
    assert kept == [b"", b"0123456789", b"0123456789"]
    assert [t.request.body.size for t in capture.transactions] == [10] * 3
    assert capture.counters.value("otel_qtap.assembler.body_bytes_refused") == 10
    assert capture.assembler.budget.used == 0


# Counters ----------------------------------------------------------------------------


def test_every_transaction_is_counted_by_role_and_ending() -> None:
    """Captured or not: the counter stands before any plugin."""
    capture = Capture()
    for number, role in enumerate((Role.SERVER, Role.CLIENT)):
        script = Script(role, connection_id=number)
        script.ask(GET)
        script.answer(OK)
        script.ask(GET_B)
        script.server_closes()
        script.destroyed()
        capture.play(script)

    value = capture.counters.value
    for role_name in ("server", "client"):
        for ending in ("complete", "server_closed"):
            assert value("otel_qtap.transactions", role=role_name, ending=ending) == 1
    assert capture.counters.total("otel_qtap.transactions") == 4
