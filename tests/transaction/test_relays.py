"""HAProxy in mode tcp: bytes of a client go to a server, and the requests in them."""

from __future__ import annotations

import random

import pytest
from conversations import IN_NO_TASK, Script, known
from messages import GET, GET_B, OK
from proxied import Proxy, request

from otel_qtap.events import CloseStep, Event, Role, StreamMark, StreamState
from otel_qtap.transaction.link import LinkMethod
from otel_qtap.transaction.model import Transaction


def in_task(address: int, passing_on: Script | None = None) -> StreamMark:
    """HAProxy ran this task, which is not that of a stream, and had just read from a server."""
    source = 0 if passing_on is None else passing_on.connection_id
    return StreamMark(StreamState.OTHER, source, 0, address)


STREAM = known(5, 0x7F00)
OTHER_STREAM = known(6, 0x8F00)
TASK, OTHER_TASK = in_task(0x1100), in_task(0x2200)


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def pass_through(client: Script, server: Script, data: bytes, task: StreamMark = TASK) -> None:
    """One request and its answer, on both sides."""
    client.ask(data)
    server.ask(data, task)
    server.answer(OK)
    client.answer(OK, in_task(0x3300))


def linked(transactions: list[Transaction]) -> list[tuple[int, int] | None]:
    """Return of all that was sent to servers the place in the client's connection it came from."""
    by_id = {t.request_id: t for t in transactions}
    found: list[tuple[int, int] | None] = []
    for transaction in transactions:
        if transaction.direction.is_ingress:
            continue
        if transaction.link is None:
            found.append(None)
            continue
        parent = by_id[transaction.link.parent_id]
        assert transaction.link.method is LinkMethod.STREAM
        found.append((parent.remote.port, parent.index))
    return found


@pytest.mark.parametrize(
    ("reading", "sending"),
    [(STREAM, TASK), (TASK, TASK)],
    ids=["before-the-server-accepted", "afterwards"],
)
def test_each_request_is_linked_to_the_same_of_the_client(proxy, reading, sending) -> None:
    """However many there are: requests of one connection may all be alike."""
    client = proxy.client(connecting=reading, remote_port=51000)
    server = proxy.server(STREAM)
    for _ in range(3):
        pass_through(client, server, GET, sending)

    transactions = proxy.play()

    assert linked(transactions) == [(51000, 0), (51000, 1), (51000, 2)]
    served = [t for t in transactions if t.direction.is_ingress]
    assert all(t.hop is not None and t.hop.attempts == 1 for t in served)
    assert all(t.hop.overhead_ns < t.timings.duration_ns for t in served if t.hop)


def test_pipelined_requests_are_told_apart_by_their_order(proxy) -> None:
    client, server = proxy.client(connecting=STREAM, remote_port=51000), proxy.server(STREAM)
    client.ask(GET + GET_B + GET)
    server.ask(GET + GET_B + GET, TASK)
    server.answer(OK * 3)
    client.answer(OK * 3, OTHER_TASK)

    assert linked(proxy.play()) == [(51000, 0), (51000, 1), (51000, 2)]


def test_a_proxy_line_in_front_changes_nothing(proxy) -> None:
    """``send-proxy``: the places in the two connections are not the same then."""
    client, server = proxy.client(connecting=STREAM, remote_port=51000), proxy.server(STREAM)
    client.ask(GET)
    server.ask(b"PROXY TCP4 192.0.2.7 172.18.0.2 51000 80\r\n" + GET, TASK)
    server.answer(OK)
    client.answer(OK, OTHER_TASK)
    pass_through(client, server, GET)

    assert linked(proxy.play()) == [(51000, 0), (51000, 1)]


def test_clients_at_the_same_time_are_told_apart(proxy) -> None:
    """By the stream that opened the connection, or the client's own task."""
    one = proxy.client(connecting=STREAM, remote_port=51001)
    two = proxy.client(connecting=OTHER_TASK, remote_port=51002)
    for client in (one, two):
        client.ask(GET)
    for_two, for_one = proxy.server(OTHER_STREAM), proxy.server(STREAM)
    for_two.ask(GET, OTHER_TASK)
    for_one.ask(GET, TASK)
    for server in (for_two, for_one):
        server.answer(OK)
    for client in (one, two):
        client.answer(OK, TASK)

    assert sorted(linked(proxy.play()), key=str) == [(51001, 0), (51002, 0)]


UNLINKED = {
    "another-task": (TASK, OTHER_STREAM, OTHER_TASK, GET),
    "another-stream": (STREAM, OTHER_STREAM, TASK, GET),
    "another-request": (STREAM, STREAM, TASK, GET_B),
    "no-task": (IN_NO_TASK, OTHER_STREAM, IN_NO_TASK, GET),
    "task-unknown": (in_task(0), OTHER_STREAM, in_task(0), GET),
}


@pytest.mark.parametrize(
    ("reading", "connecting", "sending", "data"), UNLINKED.values(), ids=UNLINKED
)
def test_whatever_is_not_the_same_is_not_linked(proxy, reading, connecting, sending, data) -> None:
    client = proxy.client(connecting=reading)
    server = proxy.server(connecting)
    client.ask(GET)
    server.ask(data, sending)
    server.answer(OK)
    client.answer(OK, OTHER_TASK)
    client.destroyed()

    assert linked(proxy.play()) == [None]


def test_a_task_of_two_clients_is_nobodys(proxy) -> None:
    """It cannot be a task that a client has to itself."""
    clients = [proxy.client(connecting=TASK) for _ in range(2)]
    server = proxy.server(OTHER_STREAM)
    for client in clients:
        client.ask(GET)
    server.ask(GET, TASK)
    server.answer(OK)
    for client in clients:
        client.answer(OK, OTHER_TASK)
        client.destroyed()

    assert linked(proxy.play()) == [None]


@pytest.mark.parametrize(
    "end", [CloseStep.LOCAL_CLOSED, CloseStep.LOCAL_CLOSED_TOO, CloseStep.DESTROYED]
)
def test_a_task_goes_to_the_next_client_once_its_own_is_closed(proxy, end) -> None:
    first, second = proxy.client(connecting=TASK, remote_port=51001), proxy.server(STREAM)
    pass_through(first, second, GET)
    first.step(end)
    third = proxy.client(connecting=TASK, remote_port=51003)
    pass_through(third, proxy.server(OTHER_STREAM), GET)

    assert linked(proxy.play()) == [(51001, 0), (51003, 0)]


def test_after_a_loss_the_place_in_the_connection_tells(proxy) -> None:
    """
    A request that was lost on one side is not the next one of the other side.

    Where the one right after it begins is not certain: it may be a rest of the lost one.
    """
    client, server = proxy.client(connecting=STREAM, remote_port=51000), proxy.server(STREAM)
    pass_through(client, server, GET)
    client.ask(GET)
    server.ask(GET, TASK, seen=False)
    server.answer(OK, seen=False)
    client.answer(OK, OTHER_TASK)
    pass_through(client, server, GET)
    pass_through(client, server, GET)

    assert linked(proxy.play()) == [(51000, 0), None, (51000, 3)]


def test_a_client_of_the_same_host_comes_first(proxy) -> None:
    """What it sent is the parent of what HAProxy got, and that of what HAProxy sent."""
    sender = proxy.timeline.open(
        Role.CLIENT, 900, process_id=4, local_address="192.0.2.7", local_port=51234,
        remote_address="172.18.0.2", remote_port=80,
    )  # fmt: skip
    sender.ask(GET)
    client, server = proxy.client(connecting=STREAM), proxy.server(STREAM)
    pass_through(client, server, GET)
    sender.answer(OK)

    transactions = proxy.play()
    sent, served, asked = sorted(
        transactions, key=lambda t: t.timings.request_start_ns, reverse=True
    )
    assert sent.link is not None
    assert served.link is not None
    assert (sent.link.parent_id, served.link.parent_id) == (served.request_id, asked.request_id)
    assert sent.link.root_id == asked.request_id


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_no_link_is_ever_wrong(seed, loss) -> None:
    """Equal requests, many clients, tasks and memory used again; events go missing."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    proxy = Proxy()
    truth = _live(proxy, chance)
    events: list[Event] = [e for e in proxy.timeline.take() if chance.random() >= loss]
    transactions = proxy.capture.take(events)
    for each in transactions:
        if each.link is not None and not each.direction.is_ingress:
            parents = [t for t in transactions if t.request_id == each.link.parent_id]
            if parents:
                key = (each.local.port, each.timings.request_start_ns)
                (parent,) = parents
                assert truth[key] == (parent.remote.port, parent.timings.request_start_ns)
    if not loss:
        assert None not in linked(transactions)


def _live(proxy: Proxy, chance: random.Random) -> dict[tuple[int, int], tuple[int, int]]:
    """Let clients come, ask and go; returns which request was passed on as which."""
    truth: dict[tuple[int, int], tuple[int, int]] = {}
    free = [in_task(0x1000 * n) for n in range(1, 9)]
    talking: list[tuple[Script, Script, StreamMark, int, int]] = []
    for number in range(60):
        task = free.pop(chance.randrange(len(free)))
        stream = known(number, 0x7F000 + task.task)
        reading = chance.choice([stream, task, NOBODY])
        client = proxy.client(connecting=reading, remote_port=50_000 + number)
        if reading is NOBODY:
            client.ask(PROXY_LINE)
        server = proxy.server(stream, local_port=20_000 + number)
        talking.append((client, server, task, 50_000 + number, 20_000 + number))
        while talking and (len(talking) == 8 or chance.random() < 0.8):
            at = chance.randrange(len(talking))
            client, server, task, remote, local = talking[at]
            if chance.random() < 0.3:
                client.step(CloseStep.LOCAL_CLOSED)
                server.step(CloseStep.LOCAL_CLOSED)
                free.append(task)
                del talking[at]
                continue
            asked = client.ask(request(1))
            sender = chance.choice([task, in_task(0x88)])
            truth[local, server.ask(request(1), sender)] = (remote, asked)
            server.answer(OK)
            client.answer(OK, in_task(0x99, server))
    for client, server, *_ in talking:
        client.destroyed()
        server.destroyed()
    return truth


def test_a_request_that_haproxy_has_read_is_linked_by_its_stream(proxy) -> None:
    """Its memory was used again: the task that sends was another client's before."""
    other = proxy.client(connecting=TASK, remote_port=51001)
    other.ask(GET)
    client = proxy.client(remote_port=51002)
    client.ask(GET)
    server = proxy.server(STREAM)
    server.ask(GET, TASK)
    server.answer(OK)
    client.answer(OK, STREAM)
    other.answer(OK, OTHER_STREAM)

    assert linked(proxy.play()) == [(51002, 0)]


def test_a_client_that_is_never_answered_proves_nothing(proxy) -> None:
    """Only its answer tells that HAProxy did not read the request itself."""
    client, server = proxy.client(connecting=TASK), proxy.server(OTHER_STREAM)
    client.ask(GET)
    server.ask(GET, TASK)
    server.answer(OK)
    assert linked(proxy.play()) == []
    client.destroyed()

    assert linked(proxy.play()) == [None]


PROXY_LINE = b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 80\r\n"
NOBODY = in_task(0x9900)
"""Reads PROXY lines and ends then."""


def accept(proxy: Proxy, port: int, connecting: StreamMark = NOBODY) -> Script:
    """A client comes by way of a proxy that says so."""
    client = proxy.client(connecting=connecting, remote_port=port)
    client.ask(PROXY_LINE)
    return client


def test_the_task_that_reads_a_proxy_line_is_not_the_clients(proxy) -> None:
    """It is over with that, and its memory used again."""
    client, server = proxy.client(connecting=TASK), proxy.server(OTHER_STREAM)
    client.ask(PROXY_LINE + GET)
    server.ask(GET, TASK)
    server.answer(OK)
    client.answer(OK, OTHER_TASK)
    client.destroyed()

    assert linked(proxy.play()) == [None]


def test_behind_a_proxy_line_the_task_that_passes_the_answer_on_tells(proxy) -> None:
    """It got the answer from the server; once that is known, so is whose the next requests are."""
    clients = [accept(proxy, 51001), accept(proxy, 51002)]
    servers = [proxy.server(OTHER_STREAM, local_port=20_002), proxy.server(STREAM)]
    for client in clients:
        client.ask(GET)
    for server in servers:
        server.ask(GET, TASK)
        server.answer(OK)
    for client, server in zip(clients, reversed(servers), strict=True):
        client.answer(OK, in_task(0x4400, server))
    pass_through(clients[0], servers[1], GET, OTHER_TASK)
    pass_through(clients[1], servers[0], GET, OTHER_TASK)

    transactions = proxy.play()

    assert linked(transactions) == [(51001, 0), (51002, 0), (51001, 1), (51002, 1)]
    served = [t for t in transactions if t.direction.is_ingress]
    assert all(t.hop is not None and t.hop.attempts == 1 for t in served)


def test_behind_a_proxy_line_pipelined_requests_are_all_found(proxy) -> None:
    """They have been sent before the first is answered."""
    client, server = accept(proxy, 51001), proxy.server(STREAM)
    client.ask(GET + GET_B + GET)
    server.ask(GET + GET_B + GET, TASK)
    for _ in range(3):
        server.answer(OK)
        client.answer(OK, in_task(0x4400, server))

    assert linked(proxy.play()) == [(51001, 0), (51001, 1), (51001, 2)]


OTHER_OK = OK.replace(b"200", b"201")


@pytest.mark.parametrize(("asked", "answer"), [(GET_B, OK), (GET, OTHER_OK)])
def test_an_answer_that_is_not_the_servers_was_not_passed_on(proxy, asked, answer) -> None:
    """The task is no evidence where what it got and what it gave are not the same."""
    client, server = accept(proxy, 51001), proxy.server(STREAM)
    client.ask(GET)
    server.ask(asked, TASK)
    server.answer(answer)
    client.answer(OK, in_task(0x4400, server))
    client.destroyed()

    assert linked(proxy.play()) == [None]


def test_a_server_whose_client_was_answered_by_its_stream_is_no_relay(proxy) -> None:
    """HAProxy had read the request itself."""
    asker = proxy.client(remote_port=51001)
    asker.ask(GET)
    server = proxy.server(STREAM)
    server.ask(GET, TASK)
    server.answer(OK)
    asker.answer(OK, STREAM)
    client = accept(proxy, 51002)
    client.ask(GET)
    client.answer(OK, in_task(0x4400, server))
    client.destroyed()

    assert linked(proxy.play()) == [(51001, 0)]


def test_a_request_whose_answer_was_lost_does_not_get_the_next_one(proxy) -> None:
    """Equal requests and answers: the place in the connection tells which is which."""
    client, server = accept(proxy, 51001), proxy.server(STREAM)
    client.ask(GET)
    server.ask(GET, TASK)
    server.answer(OK)
    client.answer(OK, in_task(0x4400, server), seen=False)
    client.ask(GET)
    server.ask(GET, TASK)
    server.answer(OK)
    client.answer(OK, in_task(0x4400, server))
    client.destroyed()

    transactions = proxy.play()

    assert all(parent in (None, (51001, 1)) for parent in linked(transactions))


def test_servers_that_refused_are_attempts_for_the_first_request(proxy) -> None:
    """In mode tcp they are tried before there is one."""
    refused = [proxy.refused(STREAM, local_port=20_000 + n) for n in range(2)]
    client = proxy.client(connecting=STREAM, remote_port=51001)
    server = proxy.server(STREAM)
    pass_through(client, server, GET)
    pass_through(client, server, GET)

    transactions = proxy.play()

    assert linked(transactions) == [(51001, 0)] * 3 + [(51001, 1)]
    attempts = [t for t in transactions if not t.direction.is_ingress]
    assert [t.resend_count for t in attempts] == [0, 1, 2, 0]
    assert [t.ending.value for t in attempts[:2]] == ["connect_failed"] * len(refused)


def test_where_all_servers_refuse_the_connect_comes_before_the_request(proxy) -> None:
    """That is how mode tcp works, and no contradiction."""
    violations: list[str] = []
    proxy.capture.assembler.linker.on_violation = lambda _, check, __: violations.append(check)
    client = proxy.client(remote_port=51001, established_ns=proxy.timeline.now_ns)
    proxy.refused(STREAM)
    client.ask(GET)
    client.step(CloseStep.LOCAL_CLOSED, mark=STREAM)
    client.destroyed()

    assert linked(proxy.play()) == [(51001, 0)]
    assert not violations


def test_a_connect_before_the_client_came_is_a_contradiction(proxy) -> None:
    """No mode of HAProxy does that."""
    proxy.refused(STREAM)
    client = proxy.client(remote_port=51001, established_ns=proxy.timeline.now_ns + 1)
    client.ask(GET)
    client.step(CloseStep.LOCAL_CLOSED, mark=STREAM)
    client.destroyed()

    assert linked(proxy.play()) == []
    assert proxy.counted("violations", check="eligible") == 1


def test_a_relay_that_answers_no_more_is_still_one(proxy) -> None:
    """What it passed on was for its client, though the server closes without an answer."""
    client = proxy.client(connecting=STREAM, remote_port=51001)
    server = proxy.server(STREAM)
    pass_through(client, server, GET)
    client.ask(GET)
    server.ask(GET, TASK)
    server.server_closes()
    client.server_closes()
    for script in (server, client):
        script.destroyed()

    assert linked(proxy.play()) == [(51001, 0), (51001, 1)]


def test_what_a_relay_has_passed_on_counts_before_it_is_over(proxy) -> None:
    """HAProxy may close the client's connection first, by the stream of both."""
    client = proxy.client(connecting=STREAM, remote_port=51001)
    server = proxy.server(STREAM)
    pass_through(client, server, GET)
    client.ask(GET)
    server.ask(GET, TASK)
    client.step(CloseStep.LOCAL_CLOSED, mark=STREAM)
    client.destroyed()
    server.client_closes()
    server.destroyed()

    transactions = proxy.play()

    assert linked(transactions) == [(51001, 0), (51001, 1)]
    served = [t for t in transactions if t.direction.is_ingress]
    assert [t.hop and t.hop.attempts for t in served] == [1, 1]


def test_what_a_neighbour_answered_may_be_told_after_it_was_received(proxy) -> None:
    """The two run on different processors."""
    sender = proxy.timeline.open(
        Role.CLIENT, 900, process_id=4, local_address="192.0.2.7", local_port=51234,
        remote_address="172.18.0.2", remote_port=80,
    )  # fmt: skip
    client = proxy.client()
    sender.ask(GET)
    client.ask(GET)
    sender.answer(OK)
    client.answer(OK, STREAM)

    sent, served = proxy.play()

    assert served.link is not None
    assert served.link.parent_id == sent.request_id
