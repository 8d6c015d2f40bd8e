"""Backend requests find the client's request that they were sent for, or nothing at all."""

from __future__ import annotations

from itertools import pairwise

import pytest
from conversations import (
    IN_NO_TASK,
    IN_OTHER_TASK,
    TICK_NS,
    UNREADABLE,
    Script,
    ending,
    known,
)
from messages import GET, NOT_FOUND, OK, OK_HEAD
from proxied import ECONNREFUSED, Proxy, number_of, parent_of, request, response

from otel_qtap.events import CloseStep, Role, StreamMark
from otel_qtap.transaction import linker
from otel_qtap.transaction.link import LinkMethod, StreamKey
from otel_qtap.transaction.model import Ending, Transaction

MINUTE_NS = 60_000_000_000
ONE, TWO = known(1), known(2, 0x8F00, 0x9A00)
"""Two streams that exist at the same time."""
AFTER_ONE = known(2)
"""The next stream at the address of ``ONE``."""


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def by_side(transactions: list[Transaction]) -> tuple[list[Transaction], list[Transaction]]:
    """Return those of clients and those with backends."""
    clients = [t for t in transactions if t.direction.is_ingress]
    return clients, [t for t in transactions if not t.direction.is_ingress]


def links(transactions: list[Transaction]) -> list[tuple[int, int | None]]:
    """Return the numbers of all backend requests, each with that of what it was sent for."""
    _, sent = by_side(transactions)
    parents = [parent_of(t, transactions) for t in sent]
    return [
        (number_of(t), None if p is None else number_of(p))
        for t, p in zip(sent, parents, strict=True)
    ]


# One request -----------------------------------------------------------------------------


def test_a_backend_request_belongs_to_the_request_it_was_sent_for(proxy) -> None:
    """The connection was opened in the stream in which the client was answered."""
    client = proxy.client()
    client.ask(request(7))
    proxy.forward(request(7), ONE)
    client.answer(OK, ONE)

    transactions = proxy.play()

    (asked,), (sent,) = by_side(transactions)
    assert sent.link is not None
    assert (sent.link.method, sent.link.parent_id) == (LinkMethod.STREAM, asked.request_id)
    assert sent.link.root_id == asked.request_id
    assert sent.stream == asked.stream == StreamKey(987, ONE.address, ONE.serial)
    assert (asked.link, sent.resend_count, sent.is_health_check) == (None, 0, False)
    assert asked.hop is not None
    assert asked.hop.attempts == 1
    assert sent.hop is None
    assert proxy.counted("linked", method="stream") == 1


def test_it_waits_for_the_client_to_be_answered(proxy) -> None:
    """Until then nobody knows whose request it was; then it goes on at once."""
    client = proxy.client()
    client.ask(GET)
    proxy.forward(GET, ONE)
    assert proxy.play() == []
    assert waiting(proxy) == 1

    client.answer(OK_HEAD, ONE)
    (sent,) = proxy.play()
    assert sent.link is not None
    assert waiting(proxy) == 0
    client.answer(b"hello", ONE)
    assert [t.request_id for t in proxy.play()] == [sent.request_id, sent.link.parent_id]


def test_it_may_end_after_its_client_was_answered(proxy) -> None:
    """An answer is passed on while it comes."""
    client = proxy.client()
    client.ask(GET)
    server = proxy.server(ONE)
    server.ask(GET, IN_OTHER_TASK)
    server.answer(OK[:-1])
    client.answer(OK[:-1], ONE)
    client.answer(OK[-1:], ONE)
    server.answer(OK[-1:])

    (asked,), (sent,) = by_side(proxy.play())

    assert sent.link is not None
    assert sent.link.parent_id == asked.request_id


def waiting(proxy: Proxy) -> float:
    (sample,) = (s for s in proxy.capture.counters.samples() if s.name == "otel_qtap.link.waiting")
    return sample.value


def test_time_that_the_proxy_was_not_waiting_is_its_own(proxy) -> None:
    """From its client's first byte to its own last byte, less what its backends took."""
    client = proxy.client()
    client.ask(GET)
    for status in (503, 503, 200):
        proxy.timeline.now_ns += 10 * TICK_NS
        server = proxy.server(ONE)
        server.ask(GET, IN_OTHER_TASK)
        proxy.timeline.now_ns += 100 * TICK_NS
        server.answer(response(status))
    client.answer(OK, ONE)

    (asked,), _ = by_side(proxy.play())

    assert asked.hop is not None
    assert asked.hop.attempts == 3
    # Ten ticks before each attempt and half of one until it connects; one to pass it on.
    assert asked.hop.overhead_ns == 3 * 10 * TICK_NS + 3 * TICK_NS // 2 + TICK_NS
    assert asked.timings.duration_ns == asked.hop.overhead_ns + 3 * (103 * TICK_NS - TICK_NS // 2)


def test_an_attempt_that_outlasts_the_answer_is_counted(proxy) -> None:
    """A server that says nothing: the proxy answers 504, and closes the connection then."""
    client = proxy.client()
    client.ask(request(1))
    proxy.timeline.now_ns += 10 * TICK_NS
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    proxy.timeline.now_ns += 100 * TICK_NS
    client.answer(response(504), ONE)
    server.client_closes()
    server.destroyed()

    (asked,), (sent,) = by_side(proxy.play())

    assert asked.hop is not None
    assert asked.hop.attempts == 1
    # Ten ticks before the attempt and half of one until it connects.
    assert asked.hop.overhead_ns == 10 * TICK_NS + TICK_NS // 2
    assert (sent.ending, sent.response, sent.resend_count) == (Ending.CLIENT_CLOSED, None, 0)
    assert parent_of(sent, [asked, sent]) is asked


def give_up(server: Script) -> None:
    """HAProxy closes a connection to a server that has not answered."""
    server.client_closes()
    server.destroyed()


@pytest.mark.parametrize(
    ("status", "closes_first", "is_given_up"),
    [(504, False, True), (200, True, True), (408, False, False)],
    ids=["gateway-timeout", "answered-by-another", "slow-client"],
)
def test_a_server_that_is_waited_for_in_vain_was_given_up(
    proxy, status, closes_first, is_given_up
) -> None:
    """HAProxy says so, or goes on to the next server; what the client did wrong is no reason."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    if closes_first:
        give_up(server)
        proxy.forward(request(1), ONE)
    client.answer(response(status), ONE)
    if not closes_first:
        give_up(server)

    _, (first, *_) = by_side(proxy.play())

    assert (first.ending, first.was_given_up) == (Ending.CLIENT_CLOSED, is_given_up)


def test_a_server_that_is_left_with_its_client_was_not_given_up(proxy) -> None:
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    client.client_closes()
    give_up(server)
    client.step(CloseStep.LOCAL_CLOSED_TOO, mark=ONE)
    client.destroyed()

    _, (sent,) = by_side(proxy.play())

    assert sent.link is not None
    assert not sent.was_given_up


def test_an_attempt_waits_from_when_it_is_over(proxy) -> None:
    """One that took long itself is not let go before the next has had its time."""
    minute_ns = 60_000_000_000
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    proxy.timeline.now_ns += minute_ns
    give_up(server)
    proxy.play()
    proxy.capture.assembler.linker.tick(proxy.timeline.now_ns + minute_ns // 2)
    proxy.timeline.now_ns += minute_ns // 2
    proxy.forward(request(1), ONE)
    client.answer(OK, ONE)

    (asked,), sent = by_side(proxy.play())

    assert [(parent_of(t, [asked]), t.resend_count) for t in sent] == [(asked, 0), (asked, 1)]


def test_time_that_an_unfinished_answer_takes_is_not_the_proxys_own(proxy) -> None:
    """A server that stops in the middle of its answer: the proxy gives up both sides."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(OK[:-1])
    client.answer(OK[:-1], ONE)
    proxy.timeline.now_ns += 100 * TICK_NS
    client.server_closes()
    client.destroyed()
    server.client_closes()
    server.destroyed()

    (asked,), (sent,) = by_side(proxy.play())

    assert asked.ending is Ending.SERVER_CLOSED
    assert asked.hop is not None
    assert (asked.hop.attempts, asked.hop.overhead_ns) == (1, TICK_NS // 2)
    assert parent_of(sent, [asked, sent]) is asked


def test_an_attempt_under_way_that_contradicts_itself_is_not_counted(proxy) -> None:
    """What is not linked was not for that request, as far as anybody knows."""
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    client = proxy.client()
    client.ask(request(2))
    client.answer(OK, ONE)
    server.answer(OK)

    (asked,), (sent,) = by_side(proxy.play())

    assert sent.link is None
    assert asked.hop is not None
    assert asked.hop.attempts == 0


def test_an_answer_waits_for_the_attempt_to_connect_that_it_is_about(proxy) -> None:
    """A server that cannot be reached: HAProxy says so before it closes the connection."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE, established_ns=0, connect_started_ns=proxy.timeline.now_ns + 500)
    proxy.timeline.now_ns += 50_000_000
    client.answer(response(503), ONE)
    server.step(CloseStep.CONNECT_FAILED)
    server.destroyed()
    linker = proxy.capture.assembler.linker

    linker.tick(proxy.timeline.now_ns)
    assert [t.direction.is_ingress for t in proxy.play()] == [False]
    linker.tick(proxy.timeline.now_ns + 200_000_000)

    (asked,), (sent,) = by_side(proxy.play())
    assert asked.hop is not None
    assert (asked.hop.attempts, sent.ending) == (1, Ending.CONNECT_FAILED)
    assert asked.hop.overhead_ns < 1_000_000


@pytest.mark.parametrize("end", ["tick", "close"])
def test_an_answer_without_such_an_attempt_does_not_wait_for_ever(proxy, end) -> None:
    """Nothing became free in HAProxy's queue, for instance."""
    client = proxy.client()
    client.ask(request(1))
    proxy.timeline.now_ns += 50_000_000
    client.answer(response(503), ONE)
    assert proxy.play() == []

    linker = proxy.capture.assembler.linker
    if end == "tick":
        linker.tick(proxy.timeline.now_ns + 200_000_000)
    else:
        linker.close()

    (asked,) = proxy.play()
    assert asked.hop is not None
    assert (asked.hop.attempts, asked.hop.overhead_ns) == (0, asked.timings.duration_ns)


# Kept connections ------------------------------------------------------------------------


def test_a_connection_is_used_for_one_client_after_the_other(proxy) -> None:
    """Each request on it belongs to the stream in which its first byte was sent."""
    first, second = proxy.client(), proxy.client()
    first.ask(request(1))
    server = proxy.forward(request(1), ONE)
    first.answer(OK, ONE)
    second.ask(request(2))
    proxy.forward(request(2), TWO, server)
    second.answer(OK, TWO)
    first.ask(request(3))
    proxy.forward(request(3), known(3), server)
    first.answer(OK, known(3))

    assert links(proxy.play()) == [(1, 1), (2, 2), (3, 3)]


def test_the_first_request_belongs_to_whoever_opened_the_connection(proxy) -> None:
    """It is sent when the connection is there, by another task or on behalf of another."""
    client, other = proxy.client(), proxy.client()
    client.ask(request(1))
    other.ask(request(2))
    server = proxy.server(ONE)
    server.ask(request(1), TWO)
    server.answer(OK)
    client.answer(OK, ONE)
    other.answer(OK, TWO)

    assert links(proxy.play()) == [(1, 1)]


def test_what_was_open_before_the_agent_came_is_linked_by_its_bytes(proxy) -> None:
    """There is nobody who knows for whom the connection was opened, and no need to."""
    client = proxy.client(joined_late=True)
    client.ask(request(1))
    server = proxy.server(IN_OTHER_TASK, joined_late=True)
    server.ask(request(1), ONE)
    server.answer(OK)
    client.answer(OK, ONE)

    transactions = proxy.play()

    assert links(transactions) == [(1, 1)]
    assert not any(t.is_health_check for t in transactions)


def test_a_first_request_that_was_lost_does_not_pass_its_mark_on(proxy) -> None:
    """The second is not the one that the connection was opened for."""
    first, second = proxy.client(), proxy.client()
    first.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK, seen=False)
    server.answer(OK)
    second.ask(request(2))
    server.ask(request(2), TWO)
    server.answer(OK)
    first.answer(OK, ONE)
    second.answer(OK, TWO)

    assert [link for link in links(proxy.play()) if link[1] is not None] in ([], [(2, 2)])


# Several attempts ------------------------------------------------------------------------


def test_attempts_are_counted(proxy) -> None:
    """Two answers that were thrown away, and the one that counted."""
    client = proxy.client()
    client.ask(request(1))
    for status in (503, 503, 200):
        proxy.forward(request(1), ONE, status=status)
    client.answer(OK, ONE)

    (asked,), sent = by_side(proxy.play())

    assert [(t.response.status, t.resend_count) for t in sent] == [(503, 0), (503, 1), (200, 2)]
    assert asked.hop is not None
    assert asked.hop.attempts == 3


def test_a_connection_that_was_refused_is_an_attempt_too(proxy) -> None:
    """Redispatch: told with what it would have been asked, and with the backend's address."""
    client = proxy.client()
    client.ask(request(1, b"body"))
    proxy.refused(ONE, remote_address="10.0.0.9", remote_port=8009)
    proxy.forward(request(1, b"body"), ONE)
    client.answer(OK, ONE)

    transactions = proxy.play()

    _, (failed, sent) = by_side(transactions)
    assert failed.ending is Ending.CONNECT_FAILED
    assert (failed.request.method, failed.request.target) == ("POST", "/1")
    assert failed.request.headers == ()  # nothing was sent
    assert (failed.remote.address, failed.remote.port) == ("10.0.0.9", 8009)
    assert (failed.resend_count, sent.resend_count) == (0, 1)
    parents = [parent_of(t, transactions) for t in (failed, sent)]
    assert parents[0] is parents[1] is not None


def test_attempts_can_all_be_in_vain(proxy) -> None:
    """The proxy answers by itself in the end."""
    client = proxy.client()
    client.ask(request(1))
    proxy.refused(ONE)
    proxy.refused(ONE)
    client.answer(response(503), ONE)

    (asked,), sent = by_side(proxy.play())

    assert [(t.ending, t.resend_count) for t in sent] == [
        (Ending.CONNECT_FAILED, 0), (Ending.CONNECT_FAILED, 1),
    ]  # fmt: skip
    assert asked.hop is not None
    assert asked.hop.attempts == 2


def test_a_refused_connection_of_which_nobody_knows_the_reason_is_no_transaction(proxy) -> None:
    """There is nothing to be said about it but that it happened; the counter does."""
    proxy.client()
    proxy.refused(ONE)
    proxy.refused(UNREADABLE)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert proxy.capture.transactions == []
    assert proxy.counted("unlinked", reason="unanswered") == 1
    assert proxy.counted("unlinked", reason="unreadable") == 1
    ending_label = Ending.CONNECT_FAILED.value
    assert (
        proxy.capture.counters.value(
            "otel_qtap.transactions", role="client", ending=ending_label
        ) == 2
    )  # fmt: skip


def test_a_refused_connection_of_another_program_is_none_either() -> None:
    """Only of HAProxy is it known what a connection was for."""
    proxy = Proxy()
    script = proxy.server(StreamMark(known(1).state.NOT_ASKED, 0, 0))
    script.step(CloseStep.CONNECT_FAILED, ECONNREFUSED)
    script.destroyed()

    assert proxy.play() == []
    assert proxy.capture.counters.total("otel_qtap.link.unlinked") == 0


def test_without_a_client_that_is_captured_nothing_waits(proxy) -> None:
    """As with ``tap.direction: egress``: it would be in vain."""
    proxy.forward(request(1), ONE)
    assert links(proxy.play()) == [(1, None)]
    assert proxy.counted("unlinked", reason="not_captured") == 1

    client = proxy.client()
    client.ask(request(2))
    proxy.forward(request(2), TWO)
    assert links(proxy.play()) == [(1, None)]
    client.client_closes()
    client.destroyed()
    assert links(proxy.play()) == [(1, None), (2, None)]
    assert proxy.counted("unlinked", reason="unanswered") == 1


# Without a backend -----------------------------------------------------------------------


def test_an_answer_of_the_proxy_itself_has_no_attempts(proxy) -> None:
    """A redirect, the statistics page, a denial."""
    client = proxy.client()
    client.ask(GET)
    client.answer(NOT_FOUND, ONE)

    (asked,) = proxy.play()

    assert asked.hop is not None
    assert (asked.hop.attempts, asked.hop.overhead_ns) == (0, TICK_NS)


def test_an_answer_outside_of_any_stream_says_nothing(proxy) -> None:
    """What is no request at all is answered 400 without one."""
    client = proxy.client()
    client.ask(GET)
    client.answer(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", IN_OTHER_TASK)

    (asked,) = proxy.play()

    assert (asked.hop, asked.stream) == (None, None)


# Health checks ---------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [IN_OTHER_TASK, IN_NO_TASK], ids=["other-task", "no-task"])
def test_a_connection_opened_outside_of_any_stream_is_a_health_check(proxy, mark) -> None:
    """Even if it asks for what a client is asking for at that moment."""
    client = proxy.client()
    client.ask(request(1))
    check = proxy.server(mark)
    check.ask(request(1), mark)
    check.answer(OK)
    proxy.forward(request(1), ONE)
    client.answer(OK, ONE)

    (asked,), (checked, sent) = by_side(proxy.play())

    assert checked.is_health_check
    assert (checked.link, checked.stream) == (None, None)
    assert not sent.is_health_check
    assert asked.hop is not None
    assert asked.hop.attempts == 1
    assert proxy.counted("health_checks") == 1


def test_a_health_check_that_got_no_connection_is_no_transaction(proxy) -> None:
    """It is told to whoever keeps the book about servers."""
    told: list[Transaction] = []
    proxy.capture.assembler.linker.on_failed_check = told.append
    proxy.refused(IN_OTHER_TASK, remote_address="10.0.0.9")

    assert proxy.play() == []
    (check,) = told
    assert check.is_health_check
    assert (check.ending, check.remote.address) == (Ending.CONNECT_FAILED, "10.0.0.9")


def test_a_check_may_use_a_connection_that_streams_have_used(proxy) -> None:
    """HAProxy 3.2 with ``check-reuse-pool``; a connection of several streams is no relay."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.forward(request(1), ONE)
    client.answer(OK, ONE)
    client.ask(request(2))
    proxy.forward(request(2), TWO, server)
    client.answer(OK, TWO)
    for number in (8, 9):
        proxy.forward(request(number), IN_OTHER_TASK, server)

    _, sent = by_side(proxy.play())

    assert [(number_of(t), t.is_health_check) for t in sent] == [
        (1, False), (2, False), (8, True), (9, True),
    ]  # fmt: skip
    assert [t.link is None for t in sent] == [False, False, True, True]


def test_a_connection_that_a_check_opened_may_be_used_by_streams_and_checks(proxy) -> None:
    """It was opened for none, so nothing is passed through it byte by byte."""
    server = proxy.server(IN_OTHER_TASK)
    proxy.forward(request(8), IN_OTHER_TASK, server)
    client = proxy.client()
    client.ask(request(1))
    proxy.forward(request(1), ONE, server)
    client.answer(OK, ONE)
    proxy.forward(request(9), IN_OTHER_TASK, server)

    transactions = proxy.play()

    _, sent = by_side(transactions)
    assert [(number_of(t), t.is_health_check) for t in sent] == [(8, True), (1, False), (9, True)]
    assert sorted(links(transactions)) == [(1, 1), (8, None), (9, None)]


def test_what_is_sent_outside_of_the_only_stream_of_a_connection_is_no_check(proxy) -> None:
    """It may be passed on byte by byte; there a stream lasts as long as the connection."""
    server = proxy.server(ONE)
    proxy.client()
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(OK)
    server.ask(request(2), ONE)
    server.answer(OK)
    proxy.forward(request(3), IN_OTHER_TASK, server)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert [t.is_health_check for t in proxy.capture.transactions] == [False] * 3
    assert proxy.counted("unlinked", reason="no_stream") == 1


# Others ----------------------------------------------------------------------------------


def test_other_programs_go_through_untouched(proxy) -> None:
    """No stream, no link, and nothing counted: one asks for one thing, the other for another."""
    client, server = proxy.client(), Script(Role.CLIENT, timeline=proxy.timeline)
    client.ask(GET)
    server.ask(request(1))
    server.answer(response(200, 1))
    client.answer(OK)

    transactions = proxy.play()

    assert [t.link for t in transactions] == [None, None]
    assert [t.stream for t in transactions] == [None, None]
    assert [t.hop for t in transactions] == [None, None]
    names = ("linked", "unlinked", "violations", "health_checks")
    assert [proxy.capture.counters.total(f"otel_qtap.link.{n}") for n in names] == [0] * 4


def test_what_could_not_be_read_is_counted_and_goes_on(proxy) -> None:
    """It must not look like a health check."""
    server = proxy.server(UNREADABLE)
    server.ask(GET, UNREADABLE)
    server.answer(OK)

    (sent,) = proxy.play()

    assert (sent.link, sent.is_health_check) == (None, False)
    assert proxy.counted("unlinked", reason="unreadable") == 1


def test_processes_have_streams_of_their_own(proxy) -> None:
    """The same address and number in another worker is another stream."""
    client, stranger = proxy.client(process_id=1), proxy.client(process_id=2)
    client.ask(request(1))
    stranger.ask(request(2))
    for pid, number in ((1, 1), (2, 2)):
        server = proxy.server(ONE, process_id=pid)
        server.ask(request(number), IN_OTHER_TASK)
        server.answer(OK)
    stranger.answer(OK, ONE)
    client.answer(OK, ONE)

    assert sorted(links(proxy.play())) == [(1, 1), (2, 2)]
    assert proxy.capture.counters.total("otel_qtap.link.violations") == 0


# Pipelining ------------------------------------------------------------------------------


def test_pipelined_requests_are_told_apart(proxy) -> None:
    """HAProxy reads them at once and works on one after the other, in a stream each."""
    client = proxy.client()
    client.ask(request(1) + request(2) + request(3))
    server = None
    for number, mark in enumerate((ONE, TWO, AFTER_ONE), start=1):
        server = proxy.forward(request(number), mark, server)
        client.answer(response(200, number), mark)

    transactions = proxy.play()

    assert links(transactions) == [(1, 1), (2, 2), (3, 3)]
    clients, _ = by_side(transactions)
    assert [t.hop.attempts for t in clients if t.hop] == [1, 1, 1]


def test_an_interim_answer_is_not_the_beginning_of_the_answer(proxy) -> None:
    """It is passed on in the same stream, long before; the mark that counts is the final one's."""
    client = proxy.client()
    client.ask(request(1))
    client.answer(b"HTTP/1.1 100 Continue\r\n\r\n", ONE)
    proxy.forward(request(1), ONE)
    client.answer(OK, ONE)

    assert links(proxy.play()) == [(1, 1)]
    assert proxy.capture.counters.total("otel_qtap.link.violations") == 0


# Clients that are given up ---------------------------------------------------------------


@pytest.mark.parametrize("mark", [ONE, ending(ONE.task)], ids=["in-the-stream", "as-it-ends"])
@pytest.mark.parametrize("is_over", [True, False], ids=["backend-first", "client-first"])
def test_what_was_sent_for_a_client_that_left_is_linked_too(proxy, mark, is_over) -> None:
    """HAProxy closes in the stream, or while it frees that: then its task is known."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), ONE)
    if is_over:
        server.client_closes()
        server.destroyed()
    client.step(CloseStep.REMOTE_CLOSED)
    client.step(CloseStep.RECEIVED_END)
    client.step(CloseStep.LOCAL_CLOSED_TOO, 0, mark)
    client.destroyed()
    server.client_closes()
    server.destroyed()

    transactions = proxy.play()

    (asked,), (sent,) = by_side(transactions)
    assert asked.ending is Ending.CLIENT_CLOSED
    assert sent.link is not None
    assert sent.link.parent_id == asked.request_id
    assert proxy.counted("linked", method="stream") == 1


def test_a_task_that_ends_another_stream_says_nothing(proxy) -> None:
    """What was sent before the client asked, or by another task, was not for it."""
    client = proxy.client()
    early = proxy.server(known(9, 0x1000, ONE.task))
    early.ask(request(9), IN_OTHER_TASK)
    client.ask(request(1))
    other = proxy.server(known(8, 0x2000, 0x5000))
    other.ask(request(8), IN_OTHER_TASK)
    for each in (early, other):
        each.answer(OK)
    client.step(CloseStep.REMOTE_CLOSED)
    client.step(CloseStep.LOCAL_CLOSED_TOO, 0, ending(ONE.task))
    client.destroyed()
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert sorted(links(proxy.capture.transactions)) == [(8, None), (9, None)]


def test_an_end_without_a_request_says_nothing(proxy) -> None:
    """An idle client leaves: whatever stream the thread was in, it was not for it."""
    idle, client = proxy.client(), proxy.client()
    idle.ask(GET)
    idle.answer(OK, known(5, 0x1000))
    client.ask(request(1))
    idle.step(CloseStep.LOCAL_CLOSED, 0, ONE)
    idle.destroyed()
    proxy.forward(request(1), ONE)
    client.answer(OK, ONE)

    assert links(proxy.play()) == [(1, 1)]
    assert proxy.capture.counters.total("otel_qtap.link.violations") == 0


def test_a_request_that_is_never_looked_at_is_not_taken_for_the_one_before(proxy) -> None:
    """Its client pipelined; HAProxy closes in the stream that it has just answered."""
    client = proxy.client()
    client.ask(request(1) + request(2))
    proxy.forward(request(1), ONE)
    client.answer(response(200, 1), ONE)
    client.step(CloseStep.LOCAL_CLOSED, 0, ONE)
    client.destroyed()

    transactions = proxy.play()

    assert links(transactions) == [(1, 1)]
    (first, second), _ = by_side(transactions)
    assert (first.stream, second.stream) == (StreamKey(987, ONE.address, ONE.serial), None)
    assert second.hop is None
    assert proxy.capture.counters.total("otel_qtap.link.violations") == 0


def test_a_client_that_was_told_to_go_on_is_given_up_in_the_same_stream(proxy) -> None:
    """An interim answer belongs to the request that waits, so its stream is no other one's."""
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.answer(b"HTTP/1.1 100 Continue\r\n\r\n", ONE)
    server.server_closes()
    client.step(CloseStep.LOCAL_CLOSED, 0, ONE)
    server.destroyed()
    client.destroyed()

    transactions = proxy.play()

    assert links(transactions) == [(1, 1)]
    (asked,), (sent,) = by_side(transactions)
    assert (asked.stream, asked.ending) == (sent.stream, Ending.SERVER_CLOSED)
    assert asked.hop is not None
    assert asked.hop.attempts == 1


# After a loss --------------------------------------------------------------------------------


def test_a_request_that_is_found_after_a_loss_has_no_mark_of_what_came_before(proxy) -> None:
    """The rest of a lost request may look like the beginning of another one."""
    first, second = proxy.client(), proxy.client()
    first.ask(request(1, b"GET"))
    second.ask(request(2))
    server = proxy.server(ONE)
    server.ask(request(1, b"GET")[:-3], IN_OTHER_TASK, seen=False)
    server.ask(b"GET", ONE)
    server.answer(OK)
    server.ask(request(2), TWO)
    server.answer(OK)
    first.answer(OK, ONE)
    second.answer(OK, TWO)

    assert links(proxy.play()) in ([(2, 2)], [(2, None)])


def test_an_answer_that_is_found_after_a_loss_has_no_mark_of_what_came_before(proxy) -> None:
    """The same on the other side."""
    client = proxy.client()
    client.ask(request(1))
    proxy.forward(request(1), ONE)
    client.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", ONE, seen=False)
    client.answer(b"HTT", ONE)
    client.ask(request(2))
    proxy.forward(request(2), TWO)
    client.answer(OK, TWO)

    assert [link for link in links(proxy.play()) if link[1] is not None] in ([], [(2, 2)])


def test_a_client_whose_last_answer_was_lost_was_not_given_up(proxy) -> None:
    """How many bytes had passed says that some were not seen: perhaps its answer."""
    client = proxy.client()
    client.ask(request(1) + request(2))
    proxy.forward(request(1), known(5, 0x1000, 0x100))
    client.answer(response(200, 1), known(5, 0x1000, 0x100), seen=False)
    server = proxy.server(ONE)
    server.ask(request(2), IN_OTHER_TASK)
    client.step(CloseStep.REMOTE_CLOSED)
    client.step(CloseStep.LOCAL_CLOSED_TOO, 0, ending(ONE.task))
    client.destroyed()
    server.answer(OK)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert [n for n, parent in links(proxy.capture.transactions) if parent not in (None, n)] == []


# Streams that are used again -------------------------------------------------------------


def test_an_address_is_used_again(proxy) -> None:
    """Its numbers tell the streams at it apart."""
    client = proxy.client()
    for serial in range(1, 30):
        client.ask(request(serial))
        proxy.forward(request(serial), known(serial))
        client.answer(OK, known(serial))

    assert links(proxy.play()) == [(n, n) for n in range(1, 30)]


def test_who_waits_for_a_stream_that_is_over_is_let_go(proxy) -> None:
    """Another stream at the same address is being answered: that of ``ONE`` never will be."""
    client = proxy.client()
    proxy.forward(request(1), ONE)
    client.ask(request(2))
    proxy.forward(request(2), AFTER_ONE)
    client.answer(OK, AFTER_ONE)

    assert links(proxy.play()) == [(1, None), (2, 2)]
    assert proxy.counted("unlinked", reason="unanswered") == 1


def test_a_request_can_outlast_its_answer(proxy) -> None:
    """The upload goes on while its stream is used again for another client."""
    client, other = proxy.client(), proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.ask(request(1), ONE)
    client.answer(OK, ONE)
    other.ask(request(2))
    proxy.forward(request(2), AFTER_ONE)
    other.answer(OK, AFTER_ONE)
    server.answer(OK)

    assert sorted(links(proxy.play())) == [(1, 1), (2, 2)]


def test_a_request_can_outlast_its_stream_by_many_others(proxy) -> None:
    """The end of an answer that HAProxy spliced is seen with the next use of its connection."""
    client, other = proxy.client(), proxy.client()
    client.ask(request(0))
    server = proxy.server(known(0))
    server.ask(request(0), known(0))
    client.answer(OK, known(0))
    for number in range(1, 20):
        other.ask(request(number))
        proxy.forward(request(number), known(number))
        other.answer(OK, known(number))
    server.answer(OK)

    assert sorted(links(proxy.play())) == [(number, number) for number in range(20)]
    assert not proxy.capture.assembler.linker._in_flight


@pytest.mark.parametrize("first_over", [(), (0,), (1,), (2,), (0, 2)])
def test_of_several_attempts_in_flight_each_is_linked(proxy, first_over) -> None:
    """Also those that are over only when others are at the address of their stream."""
    client, other = proxy.client(), proxy.client()
    client.ask(request(0))
    servers = [proxy.server(known(0)) for _ in range(3)]
    for server in servers:
        server.ask(request(0), known(0))
    for number in first_over:
        servers[number].answer(OK)
    client.answer(OK, known(0))
    for number in range(1, 9):
        other.ask(request(number))
        proxy.forward(request(number), known(number))
        other.answer(OK, known(number))
    for number in {0, 1, 2}.difference(first_over):
        servers[number].answer(OK)

    assert sorted(links(proxy.play()))[:3] == [(0, 0)] * 3
    assert not proxy.capture.assembler.linker._in_flight


def test_numbers_wrap(proxy) -> None:
    """After 2^32 requests; the newer number is the smaller one then."""
    client = proxy.client()
    proxy.forward(request(1), known(2**32 - 2))  # of a client that is never answered
    client.ask(request(2))
    proxy.forward(request(2), known(2**32 - 1))
    client.answer(OK, known(2**32 - 1))
    client.ask(request(3))
    proxy.forward(request(3), known(0))
    client.answer(OK, known(0))

    assert links(proxy.play()) == [(1, None), (2, 2), (3, 3)]


def test_a_newer_stream_waits_on(proxy) -> None:
    """What was sent for it comes out before an answer of the one before is told."""
    client, other = proxy.client(), proxy.client()
    client.ask(request(1))
    other.ask(request(2))
    proxy.forward(request(2), AFTER_ONE)
    client.answer(OK, ONE)
    assert links(proxy.play()) == []

    other.answer(OK, AFTER_ONE)
    assert links(proxy.play()) == [(2, 2)]


# Evidence that contradicts itself --------------------------------------------------------


def test_a_stream_with_two_clients_links_nothing(proxy) -> None:
    """One of the marks is wrong, and nobody knows which."""
    first, second = proxy.client(), proxy.client()
    first.ask(request(1))
    second.ask(request(2))
    first.answer(OK, ONE)
    second.answer(OK, ONE)
    server = proxy.server(ONE, connect_started_ns=first.now_ns - 3 * TICK_NS // 2)
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(OK)

    assert links(proxy.play()) == [(1, None)]
    assert proxy.counted("violations", check="two_clients") == 1
    assert proxy.counted("unlinked", reason="violation") == 1


def _on_another_thread(proxy: Proxy) -> None:
    client = proxy.client()
    client.ask(request(1))
    server = proxy.server(ONE)
    server.thread_id += 1
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(OK)
    client.answer(OK, ONE)


def _before_it_was_asked(proxy: Proxy) -> None:
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    client = proxy.client()
    client.ask(request(1))
    server.answer(OK)
    client.answer(OK, ONE)


def _while_another_answer_was_sent(proxy: Proxy) -> None:
    client = proxy.client()
    client.ask(request(0) + request(1))
    client.answer(OK_HEAD, TWO)
    server = proxy.server(ONE)
    server.ask(request(1), IN_OTHER_TASK)
    client.answer(b"hello", TWO)
    server.answer(OK)
    client.answer(OK, ONE)


def _after_it_was_answered(proxy: Proxy) -> None:
    client = proxy.client()
    client.ask(request(1))
    client.answer(OK, ONE)
    proxy.forward(request(1), ONE)


_CONTRADICTIONS = [
    pytest.param(_on_another_thread, "thread", id="another-thread"),
    pytest.param(_before_it_was_asked, "eligible", id="before-it-was-asked"),
    pytest.param(_while_another_answer_was_sent, "eligible", id="before-its-turn"),
    pytest.param(_after_it_was_answered, "answered", id="after-it-was-answered"),
]


@pytest.mark.parametrize(("happen", "check"), _CONTRADICTIONS)
def test_what_cannot_be_is_not_linked(proxy, happen, check) -> None:
    """The mark fits, but a thread keeps its clients, and cause comes before effect."""
    happen(proxy)

    transactions = proxy.play()

    assert links(transactions) == [(1, None)]
    assert proxy.counted("violations", check=check) == 1
    assert proxy.capture.counters.total("otel_qtap.link.violations") == 1
    assert proxy.counted("unlinked", reason="violation") == 1
    clients, _ = by_side(transactions)
    assert clients[-1].hop is not None
    assert clients[-1].hop.attempts == 0


# Bounds ----------------------------------------------------------------------------------


def test_who_waits_too_long_goes_on_without(proxy) -> None:
    """The others wait on; the bound is looked at by the clock of the agent."""
    limit_ns = linker._LONGEST_WAIT_NS
    proxy.client()
    proxy.forward(request(1), ONE)
    first_ns = proxy.timeline.now_ns
    proxy.timeline.now_ns += limit_ns // 2
    proxy.forward(request(2), TWO)
    assert links(proxy.play()) == []

    proxy.capture.assembler.linker.tick(first_ns + limit_ns - 10 * TICK_NS)
    assert links(proxy.play()) == []
    proxy.capture.assembler.linker.tick(first_ns + limit_ns + TICK_NS)
    assert links(proxy.play()) == [(1, None)]

    assert proxy.counted("unlinked", reason="expired") == 1
    assert waiting(proxy) == 1


def test_no_more_wait_than_there_is_room_for(proxy, monkeypatch) -> None:
    """The next go on without; those that wait are not touched."""
    monkeypatch.setattr(linker, "_WAITING", 2)
    client = proxy.client()
    client.ask(request(0))
    for number in range(1, 4):
        proxy.forward(request(number), known(number, 0x1000 * number))
    client.ask(request(9))
    client.answer(OK, known(1, 0x1000))

    assert sorted(links(proxy.play())) == [(1, 0), (3, None)]
    assert proxy.counted("unlinked", reason="overflow") == 1
    assert waiting(proxy) == 1


def tell_later(proxy, servers: list[Script]) -> None:
    """Have requests to backends end, and seen only after everything else."""
    for server in servers:
        server.answer(OK)
    late = [event for server in servers for event in server.events]
    events = proxy.timeline.events
    events[:] = [event for event in events if event not in late] + late


def test_streams_that_were_answered_long_ago_are_forgotten(proxy, monkeypatch) -> None:
    """Their number is bounded; the oldest goes first, and the one just used stays."""
    monkeypatch.setattr(linker, "_PLACES", 2)
    clients = [proxy.client() for _ in range(3)]
    servers = []
    for number, client in enumerate(clients):
        client.ask(request(number))
        servers.append(proxy.server(known(1, 0x1000 * (number + 1))))
        servers[-1].ask(request(number), IN_OTHER_TASK)
        client.answer(OK, known(1, 0x1000 * (number + 1)))
    tell_later(proxy, servers)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert sorted(links(proxy.capture.transactions)) == [(0, None), (1, 1), (2, 2)]


def test_at_an_address_only_the_newest_streams_are_kept(proxy, monkeypatch) -> None:
    """What was sent for others is rarely told after that of so many."""
    monkeypatch.setattr(linker, "_KEPT_AT_ADDRESS", 2)
    client = proxy.client()
    servers = []
    for serial in range(3):
        client.ask(request(serial))
        servers.append(proxy.server(known(serial)))
        servers[-1].ask(request(serial), IN_OTHER_TASK)
        client.answer(OK, known(serial))
    tell_later(proxy, servers)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert sorted(links(proxy.capture.transactions)) == [(0, None), (1, 1), (2, 2)]


def test_clients_that_were_given_up_are_forgotten(proxy, monkeypatch) -> None:
    """What was sent for them comes soon or never."""
    monkeypatch.setattr(linker, "_GIVEN_UP", 1)
    servers = []
    for number, task in ((1, 0x100), (2, 0x200)):
        client = proxy.client()
        client.ask(request(number))
        mark = known(number, 0x1000 * number, task)
        servers.append(proxy.server(mark))
        servers[-1].ask(request(number), mark)
        client.step(CloseStep.LOCAL_CLOSED, 0, ending(task))
        client.destroyed()
    for server in servers:
        server.answer(OK)
    proxy.play()
    proxy.capture.assembler.linker.close()

    assert sorted(links(proxy.capture.transactions)) == [(1, None), (2, 2)]


def test_stopping_lets_go_of_all_that_wait(proxy) -> None:
    """Each of them is told, with the reason counted."""
    proxy.client()
    proxy.forward(request(1), ONE)
    proxy.forward(request(2), TWO)
    proxy.play()

    proxy.capture.assembler.linker.close()

    assert links(proxy.capture.transactions) == [(1, None), (2, None)]
    assert proxy.counted("unlinked", reason="unanswered") == 2
    assert waiting(proxy) == 0


# Chains ----------------------------------------------------------------------------------

OUTER, INNER = 1, 2
"""Two HAProxy processes of this host; the first asks the second."""
BETWEEN = {"remote_address": "10.0.0.2", "remote_port": 80}


def _ends(proxy: Proxy, mark: StreamMark) -> tuple[Script, Script]:
    """One connection between the two proxies, seen from both of its ends."""
    sender = proxy.server(
        mark, process_id=OUTER, local_address="10.0.0.1", local_port=40001, **BETWEEN
    )
    receiver = proxy.client(
        process_id=INNER, local_address="10.0.0.2", local_port=80,
        remote_address="10.0.0.1", remote_port=40001,
    )  # fmt: skip
    return sender, receiver


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_chain_of_proxies_is_one_tree(proxy, outer_first) -> None:
    """Whoever is done first; the innermost request knows the outermost."""
    client = proxy.client(process_id=OUTER)
    client.ask(request(1))
    sender, receiver = _ends(proxy, ONE)
    sender.ask(request(1), IN_OTHER_TASK)
    receiver.ask(request(1))
    server = proxy.server(TWO, process_id=INNER, local_port=40002)
    server.ask(request(1), IN_OTHER_TASK)
    server.answer(OK)
    receiver.answer(OK, TWO)
    if outer_first:
        client.answer(OK_HEAD, ONE)
        sender.answer(OK)
    else:
        sender.answer(OK)
        client.answer(OK_HEAD, ONE)
    client.answer(b"hello", ONE)

    transactions = proxy.play()

    by_port = {t.local.port: t for t in transactions if not t.direction.is_ingress}
    received = next(t for t in transactions if t.local.port == 80 and t.process.pid == INNER)
    asked = next(t for t in transactions if t.direction.is_ingress and t.process.pid == OUTER)
    chain = [asked, by_port[40001], received, by_port[40002]]
    methods = [t.link and t.link.method for t in chain]
    assert methods == [None, LinkMethod.STREAM, LinkMethod.CONNECTION, LinkMethod.STREAM]
    for parent, child in pairwise(chain):
        assert child.link is not None
        assert child.link.parent_id == parent.request_id
        assert child.link.root_id == asked.request_id
    assert proxy.counted("linked", method="stream") == 2
    assert proxy.counted("linked", method="connection") == 1


def test_requests_on_one_connection_between_proxies_are_told_apart(proxy) -> None:
    """By where each begins in the stream of bytes; whatever was lost before."""
    clients = [proxy.client(process_id=OUTER) for _ in range(3)]
    sender = receiver = None
    for number, client in enumerate(clients):
        mark, inner = known(number), known(number, 0x8F00, 0x9A00)
        client.ask(request(number))
        if sender is None or receiver is None:
            sender, receiver = _ends(proxy, mark)
            sender.ask(request(number), IN_OTHER_TASK)
        else:
            sender.ask(request(number), mark, seen=number != 1)
        receiver.ask(request(number))
        receiver.answer(OK, inner)
        sender.answer(OK)
        client.answer(OK, mark)

    transactions = proxy.play()
    proxy.capture.assembler.neighbours.tick(proxy.timeline.now_ns + 2 * MINUTE_NS)

    received = {number_of(t): t for t in transactions if t.process.pid == INNER}
    sent = {t.request_id: t for t in transactions if t.local.port == 40001}
    assert sorted(received) == [0, 1, 2]
    for number, transaction in received.items():
        if transaction.link is not None:
            assert number_of(sent[transaction.link.parent_id]) == number
    assert received[1].link is None  # what was sent then was lost
    assert received[0].link is not None


def test_a_chain_whose_first_link_is_unknown_is_told_all_the_same(proxy) -> None:
    """The outer client is never answered: the rest is a tree of its own."""
    proxy.client(process_id=OUTER)
    sender, receiver = _ends(proxy, ONE)
    sender.ask(request(1), IN_OTHER_TASK)
    receiver.ask(request(1))
    receiver.answer(OK, TWO)
    sender.answer(OK)
    assert proxy.play() == []

    proxy.capture.assembler.linker.close()

    sent, received = sorted(proxy.capture.transactions, key=lambda t: t.process.pid)
    assert (sent.process.pid, sent.link) == (OUTER, None)
    assert received.link is not None
    assert received.link.parent_id == received.link.root_id == sent.request_id
