"""What a transaction says, how many there are, and what they may hold."""

from __future__ import annotations

from conversations import EPOCH_OFFSET_NS, TICK_NS, Capture, Script, play, told
from messages import GET, GET_B, GET_C, NOT_FOUND, OK, OK_HEAD, POST, POST_CHUNKED

from otel_qtap.connection.model import Peer
from otel_qtap.events import Role
from otel_qtap.transaction.assembler import AssemblerLimits
from otel_qtap.transaction.model import Direction, Ending

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
