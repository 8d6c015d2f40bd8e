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


def in_task(address: int) -> StreamMark:
    """HAProxy ran this task, which is not that of a stream."""
    return StreamMark(StreamState.OTHER, 0, 0, address)


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
        reading = chance.choice([stream, task])
        client = proxy.client(connecting=reading, remote_port=50_000 + number)
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
            truth[local, server.ask(request(1), task)] = (remote, asked)
            server.answer(OK)
            client.answer(OK, in_task(0x99))
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


def test_the_task_that_reads_a_proxy_line_is_not_the_clients(proxy) -> None:
    """It is over with that, and its memory used again."""
    client, server = proxy.client(connecting=TASK), proxy.server(OTHER_STREAM)
    client.ask(b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 80\r\n" + GET)
    server.ask(GET, TASK)
    server.answer(OK)
    client.answer(OK, OTHER_TASK)
    client.destroyed()

    assert linked(proxy.play()) == [None]


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
