"""What traffic tells of who asked for what, where no stream does: and what it leaves open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversations import Script, known
from relayed import SERVER_PORTS, Name, Relay, ask, name, reply

from otel_qtap.events import CloseStep, Role
from otel_qtap.transaction.assembler import AssemblerLimits
from otel_qtap.transaction.model import Transaction

NGINX = "/usr/sbin/nginx"
LONG = b"a document that is long enough not to be met by chance, of order %d"
CURL = "User-Agent: curl"
VIA = "X-Forwarded-For: 192.0.2.7"
SECOND_NS = 1_000_000_000

Links = dict[Name, tuple[str, Name]]


@pytest.fixture
def relay() -> Relay:
    """A HAProxy of which no stream is known, with some traffic behind it."""
    return seasoned(Relay())


def seasoned(relay: Relay) -> Relay:
    """Let a relay have passed on ``GET /`` and ``fine``, so that they are nothing new."""
    for _ in range(2):
        exchange(relay.client(), relay.server())
    relay.play()
    relay.capture.transactions.clear()
    return relay


def exchange(
    client: Script, server: Script, request: bytes = ask("/", CURL), answer: bytes = reply()
) -> Links:
    """Pass on a request and its answer; returns the link that there should be."""
    asked = name(client, client.ask(request))
    sent = name(server, server.ask(request))
    server.answer(answer)
    client.answer(answer)
    return {sent: ("response", asked)}


# Linked ------------------------------------------------------------------------------------


def _alone(relay: Relay) -> Links:
    return exchange(relay.client(), relay.server())


def _one_after_the_other(relay: Relay) -> Links:
    client, server = relay.client(), relay.server()
    return exchange(client, server) | exchange(client, server)


def _on_two_threads(relay: Relay) -> Links:
    """Requests and answers are alike, but a thread keeps its own."""
    one, other = relay.client(thread=1), relay.client(thread=2)
    asked = [name(each, each.ask(ask("/", CURL))) for each in (one, other)]
    servers = [relay.server(thread=2), relay.server(thread=1)]
    sent = [name(each, each.ask(ask("/", CURL))) for each in servers]
    for each in (*servers, one, other):
        each.answer(reply())
    return {sent[0]: ("response", asked[1]), sent[1]: ("response", asked[0])}


def _alike_with_answers_of_their_own(relay: Relay) -> Links:
    """In another order than they were asked."""
    clients, servers = _two(relay), [relay.server(), relay.server()]
    asked = [name(each, each.ask(ask("/", CURL))) for each in clients]
    sent = [name(each, each.ask(ask("/", CURL, VIA))) for each in servers]
    for number in (1, 0):
        servers[number].answer(reply(LONG % number))
        clients[1 - number].answer(reply(LONG % number))
    return {sent[n]: ("response", asked[1 - n]) for n in (0, 1)}


def _rewritten_but_for_the_answer(relay: Relay) -> Links:
    client, server = relay.client(), relay.server()
    asked = name(client, client.ask(ask("/old", CURL)))
    sent = name(server, server.ask(ask("/new", "Accept: */*")))
    server.answer(reply(LONG % 1))
    client.answer(reply(LONG % 1, 203, "Server: front"))
    return {sent: ("response", asked)}


def _chunked_anew(relay: Relay) -> Links:
    """What is compared is the body, however each side frames and slices it."""
    client, server = relay.client(), relay.server()
    asked = name(client, client.ask(ask("/old", CURL)))
    sent = name(server, server.ask(ask("/new", CURL)))
    body, head = LONG % 1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answer(head + b"%x\r\n%b\r\n" % (len(body), body))
    server.answer(b"0\r\n\r\n")
    client.answer(head + b"7\r\n%b\r\n" % body[:7])
    client.answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 7, body[7:]))
    return {sent: ("response", asked)}


def _nothing_like_it_before(relay: Relay) -> Links:
    """Small answers that are all alike, to requests of which each is the only one."""
    clients, servers = _two(relay), [relay.server(), relay.server()]
    asked = [name(c, c.ask(ask(f"/item/{n}", CURL))) for n, c in enumerate(clients)]
    sent = [name(s, s.ask(ask(f"/item/{n}", CURL, VIA))) for n, s in enumerate(servers)]
    for each in (*servers, *clients):
        each.answer(reply(b"", 204))
    return {sent[n]: ("header", asked[n]) for n in (0, 1)}


@pytest.mark.parametrize("field", ["X-Request-ID", "traceparent", "x-correlation-id", "B3"])
def test_an_identity_links_all_attempts(relay, field) -> None:
    """As soon as they are over: nobody has to wait for the answer to the client."""
    client, server = relay.client(), relay.server()
    request = ask("/", CURL, f"{field}: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    asked = name(client, client.ask(request))
    sent = []
    for status in (503, 200):
        sent.append(name(server, server.ask(request)))
        server.answer(reply(b"", status))

    transactions = [t for t in relay.play() if not t.direction.is_ingress]
    assert [t.resend_count for t in transactions] == [0, 1]
    assert [t.link.is_first_sent for t in transactions] == [True, False]
    client.answer(reply(b""))
    assert relay.links() == dict.fromkeys(sent, ("header", asked))


def _upgraded(relay: Relay) -> Links:
    client, server = relay.client(), relay.server()
    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==")
    asked = name(client, client.ask(ask("/chat", *fields)))
    sent = name(server, server.ask(ask("/chat", *fields)))
    switch = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    server.answer(switch)
    client.answer(switch)
    return {sent: ("header", asked)}


def _proxy_line(relay: Relay) -> Links:
    """It names the client, who has one request in flight."""
    clients, servers = _two(relay), [relay.server(), relay.server()]
    asked = [name(each, each.ask(ask("/", CURL))) for each in clients]
    sent = []
    for client, server in zip(clients, servers, strict=True):
        port = client.connection_id + 20_000
        line = b"PROXY TCP4 192.0.2.7 172.18.0.2 %d 80\r\n" % port
        sent.append(name(server, server.ask(line + ask("/", CURL))))
    for each in (*servers, *clients):
        each.answer(reply())
    return {sent[n]: ("header", asked[n]) for n in (0, 1)}


def _as_bytes_come(relay: Relay) -> Links:
    """HAProxy in mode tcp passes on a request before the one in front of it is answered."""
    client, server = relay.client(), relay.server()
    both = ask("/a", CURL) + ask("/b", CURL)
    asked_ns, sent_ns = client.ask(both), server.ask(both)
    for number in (0, 1):
        server.answer(reply(LONG % number))
        client.answer(reply(LONG % number))
    return {name(server, sent_ns, n): ("header", name(client, asked_ns, n)) for n in (0, 1)}


LINKED = [
    _alone, _one_after_the_other, _on_two_threads, _alike_with_answers_of_their_own,
    _rewritten_but_for_the_answer, _chunked_anew, _nothing_like_it_before, _upgraded,
    _proxy_line, _as_bytes_come,
]  # fmt: skip


def _two(relay: Relay) -> list[Script]:
    return [relay.client(), relay.client()]


def _id(story: Callable[..., object]) -> str:
    return story.__name__.strip("_").replace("_", "-")


@pytest.mark.parametrize("story", LINKED, ids=_id)
@pytest.mark.parametrize("body_bytes", [0, 1_000_000], ids=["heads", "bodies"])
def test_what_leaves_no_doubt_is_linked(story, body_bytes) -> None:
    """Whether bodies are kept or not: their beginnings are looked at as they pass."""
    relay = seasoned(Relay(limits=AssemblerLimits(body_bytes=body_bytes)))
    expected = story(relay)

    assert relay.links() == expected
    assert all(not t.candidates and t.hop is None for t in relay.play())


# Not linked --------------------------------------------------------------------------------


def _same_on_both_sides(relay: Relay) -> dict[Name, list[Name]]:
    """Two clients, two backends, all alike."""
    clients, servers = _two(relay), [relay.server(), relay.server()]
    asked = [name(each, each.ask(ask("/", CURL))) for each in clients]
    sent = [name(each, each.ask(ask("/", CURL))) for each in servers]
    for each in (*servers, *clients):
        each.answer(reply())
    return dict.fromkeys(sent, asked)


def _same_document_at_the_same_time(relay: Relay) -> dict[Name, list[Name]]:
    clients, servers = _two(relay), [relay.server(), relay.server()]
    asked = [name(each, each.ask(ask("/doc", CURL))) for each in clients]
    sent = [name(each, each.ask(ask("/doc", CURL))) for each in servers]
    for each in (*servers, *clients):
        each.answer(reply(LONG % 1))
    return dict.fromkeys(sent, asked)


def _a_client_went_away(relay: Relay) -> dict[Name, list[Name]]:
    """What a backend answered may have been for it."""
    clients, server = _two(relay), relay.server()
    asked = [name(each, each.ask(ask("/", CURL))) for each in clients]
    sent = name(server, server.ask(ask("/", CURL)))
    clients[0].client_closes()
    clients[0].destroyed()
    server.answer(reply())
    clients[1].answer(reply())
    return {sent: asked}


def _a_check_that_looks_alike(relay: Relay) -> dict[Name, list[Name]]:
    """A request to a backend on nobody's behalf, while one is made on a client's."""
    client, servers = relay.client(), [relay.server(), relay.server()]
    asked = name(client, client.ask(ask("/", CURL)))
    sent = [name(each, each.ask(ask("/", CURL))) for each in servers]
    for each in (*servers, client):
        each.answer(reply())
    return {each: [asked] for each in sent}


def _a_small_answer_to_something_else(relay: Relay) -> dict[Name, list[Name]]:
    """A program that asks others and answers ``fine`` all by itself."""
    client, server = relay.client(), relay.server()
    asked = name(client, client.ask(ask("/login", CURL)))
    sent = name(server, server.ask(ask("/check", "User-Agent: python")))
    server.answer(reply())
    client.answer(reply())
    return {sent: [asked]}


def _an_identity_that_many_have(relay: Relay) -> dict[Name, list[Name]]:
    clients, servers = _two(relay), [relay.server(), relay.server()]
    request = ask("/", CURL, "X-Request-ID: always-the-same")
    asked = [name(each, each.ask(request)) for each in clients]
    sent = [name(each, each.ask(request)) for each in servers]
    for each in (*servers, *clients):
        each.answer(reply())
    return dict.fromkeys(sent, asked)


def _too_little_was_copied(relay: Relay) -> dict[Name, list[Name]]:
    """Of the answer to one client less than is compared: it may be anything."""
    clients, server = _two(relay), relay.server()
    asked = [name(each, each.ask(ask("/doc", CURL))) for each in clients]
    sent = name(server, server.ask(ask("/doc", CURL)))
    server.answer(reply(b"fine"))
    whole = reply(b"x" * 9000)
    clients[0].answer_cut(whole[:200], len(whole))
    clients[1].answer(reply(b"fine"))
    return {sent: asked}


def _an_error(relay: Relay) -> dict[Name, list[Name]]:
    """A proxy says the same by itself, or tries again without telling."""
    client, server = relay.client(), relay.server()
    client.ask(ask("/only/once", CURL))
    server.ask(ask("/only/once", CURL))
    for each in (server, client):
        each.answer(reply(LONG % 1, 503))
    return {}


def _compressed(relay: Relay) -> dict[Name, list[Name]]:
    client, server = relay.client(), relay.server()
    client.ask(ask("/doc", CURL))
    server.ask(ask("/doc", CURL))
    server.answer(reply(LONG % 1))
    client.answer(reply(b"\x1f\x8b" + b"0" * 40, 200, "Content-Encoding: gzip"))
    return {}


def _more_than_anybody_would_look_at(relay: Relay) -> dict[Name, list[Name]]:
    clients = [relay.client() for _ in range(9)]
    servers = [relay.server() for _ in range(9)]
    for each in (*clients, *servers):
        each.ask(ask("/", CURL))
    for each in (*servers, *clients):
        each.answer(reply())
    return {}


def _pipelined_behind_another(relay: Relay) -> dict[Name, list[Name]]:
    """What was sent before it was its turn was not sent for it."""
    client, server = relay.client(), relay.server()
    asked_ns = client.ask(ask("/other", CURL) + ask("/", CURL))
    sent = name(server, server.ask(ask("/", CURL, VIA)))
    server.answer(reply())
    client.answer(reply(b"something else"))
    client.answer(reply())
    return {sent: [name(client, asked_ns, 1)]}


UNDECIDED = [
    (_same_on_both_sides, "ambiguous"),
    (_same_document_at_the_same_time, "ambiguous"),
    (_a_client_went_away, "ambiguous"),
    (_a_check_that_looks_alike, "ambiguous"),
    (_a_small_answer_to_something_else, "commonplace"),
    (_an_identity_that_many_have, "ambiguous"),
    (_too_little_was_copied, "ambiguous"),
    (_an_error, "commonplace"),
    (_compressed, "no_parent"),
    (_more_than_anybody_would_look_at, "ambiguous"),
    (_pipelined_behind_another, "commonplace"),
]


@pytest.mark.parametrize(("story", "reason"), UNDECIDED, ids=[_id(s) for s, _ in UNDECIDED])
@pytest.mark.parametrize("executable", ["/usr/sbin/haproxy", NGINX])
def test_what_leaves_doubt_is_not_linked(story, reason, executable) -> None:
    """But those that can be meant are named, if they are few."""
    relay = seasoned(Relay(executable))
    expected = story(relay)

    assert relay.candidates() == expected
    assert relay.links() == {}
    sent = sum(not t.direction.is_ingress for t in relay.play())
    assert relay.counted("undecided", reason=reason) == sent > 0


def test_threads_of_other_programs_mean_nothing() -> None:
    """Whoever has read a request may leave the rest to another."""
    relay = seasoned(Relay(NGINX))
    _on_two_threads(relay)
    apart = Relay(NGINX)
    seasoned(apart)
    client, server = apart.client(thread=1), apart.server(thread=2)
    expected = exchange(client, server)

    assert relay.links() == {}
    assert apart.links() == expected


# What a process asks of its own accord -----------------------------------------------------


def _tick(relay: Relay, seconds: int) -> None:
    """Let time pass, as the agent does."""
    relay.play()
    for _ in range(seconds):
        relay.timeline.now_ns += SECOND_NS
        relay.capture.assembler.linker.tick(relay.timeline.now_ns)


@pytest.mark.parametrize("pause_s", [0, 2, 40])
@pytest.mark.parametrize("is_new", [False, True], ids=["same-answer", "new-answers"])
@pytest.mark.parametrize("target", ["/status?since=9", "/health"])
@pytest.mark.parametrize("has_clients", [False, True], ids=["no-client-between", "kept-alive"])
def test_a_poller_is_not_taken_for_a_proxy(pause_s, is_new, target, has_clients) -> None:
    """Clients are answered out of what it got, and one waits while it polls."""
    relay = Relay(NGINX)
    server = relay.server()
    if has_clients:
        relay.client()
    for number in range(3):
        server.ask(ask(f"/status?since={number}", CURL))
        server.answer(reply(LONG % (number * is_new)))
        _tick(relay, pause_s)
    client = relay.client()
    client.ask(ask(target, CURL))
    server.ask(ask("/status?since=9", CURL))
    server.answer(reply(LONG % (9 * is_new)))
    client.answer(reply(LONG % (9 * is_new)))
    _tick(relay, 12)

    assert relay.links() == {}
    assert relay.counted("undecided", reason="commonplace") == 1


def test_a_poller_is_told_apart_while_others_wait() -> None:
    """It was seen to ask though nobody who waited had asked for that path."""
    relay = Relay(NGINX)
    other, client, server = relay.client(), relay.client(), relay.server()
    other.ask(ask("/events", CURL))
    server.ask(ask("/status", CURL))
    server.answer(reply(LONG % 1))
    client.ask(ask("/status", CURL))
    server.ask(ask("/status", CURL))
    server.answer(reply(LONG % 2))
    client.answer(reply(LONG % 2))
    _tick(relay, 12)

    assert relay.links() == {}


def test_a_proxy_that_changes_paths_is_no_poller() -> None:
    """That nobody asked for a path says nothing of clients who ask for another."""
    relay = seasoned(Relay(NGINX))
    expected = {}
    for number in range(3):
        client, server = relay.client(), relay.server()
        asked = name(client, client.ask(ask("/v1/items", CURL)))
        sent = name(server, server.ask(ask("/items", CURL, VIA)))
        server.answer(reply(LONG % number))
        client.answer(reply(LONG % number))
        expected[sent] = ("response", asked)

    assert relay.links() == expected


def test_what_was_asked_for_a_client_who_went_away_is_not_its_own(relay) -> None:
    """The process may go on with it, and begin to ask only then."""
    gone, server = relay.client(), relay.server()
    gone.ask(ask("/doc", CURL))
    gone.client_closes()
    gone.destroyed()
    server.ask(ask("/doc", CURL))
    server.answer(reply(LONG % 1))
    _tick(relay, 1)
    expected = exchange(relay.client(), server, ask("/doc", CURL), reply(LONG % 2))

    assert relay.links() == expected


@pytest.mark.parametrize("loss", [False, True])
def test_a_poller_is_known_in_spite_of_a_loss(loss) -> None:
    """What was lost may have been a client, but it was answered by then."""
    relay = seasoned(Relay(NGINX))
    client, server = relay.client(), relay.server()
    server.ask(ask("/status", CURL))
    server.answer(reply(LONG % 1))
    client.ask(ask("/status", CURL), seen=not loss)
    client.answer(reply(LONG % 1))
    client.ask(ask("/status", CURL))
    server.ask(ask("/status", CURL))
    server.answer(reply(LONG % 2))
    client.answer(reply(LONG % 2))
    _tick(relay, 12)

    assert relay.links() == {}


@pytest.mark.parametrize("ending", ["answered", "gone"])
def test_a_value_is_not_new_because_nobody_had_to_look(ending) -> None:
    """It was in a client's request before the process had asked anybody."""
    relay = Relay(NGINX)
    before, client, server = relay.client(), relay.client(), relay.server()
    request = ask("/job", CURL, "X-Request-ID: 17")
    before.ask(request)
    if ending == "answered":
        before.answer(reply(b"", 202))
    else:
        before.client_closes()
        before.destroyed()
    client.ask(request)
    server.ask(ask("/work", "X-Request-ID: 17"))  # for the first one, perhaps
    server.answer(reply(LONG % 1))
    client.answer(reply(LONG % 2))

    assert relay.links() == {}


def test_a_value_is_known_as_long_as_its_request_is_in_flight() -> None:
    """Its client may ask again under the same number, however much came in between."""
    relay = Relay(NGINX)
    request = ask("/slow", CURL, "X-Request-ID: 17")
    first = relay.client()
    first.ask(request)
    other, server = relay.client(), relay.server()
    server.ask(ask("/first/part", "Accept: */*"))
    server.answer(reply(LONG % 1))
    for number in range(5000):
        other.ask(ask(f"/{number}", CURL))
        other.answer(reply())
    again = relay.client()
    again.ask(request)
    server.ask(ask("/work", "X-Request-ID: 17"))
    server.answer(reply(LONG % 2))

    assert relay.links() == {}


# Loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["request", "answer", "whole connection"])
def test_a_loss_leaves_what_overlapped_unlinked(relay, what) -> None:
    """What was lost may have been the other side; what begins later is linked again."""
    other = relay.client()
    if what == "whole connection":
        relay.timeline.events.clear()
    other.ask(ask("/", CURL), seen=what != "request")
    client, server = relay.client(), relay.server()
    client.ask(ask("/", CURL))
    server.ask(ask("/", CURL))
    server.answer(reply())
    other.answer(reply(), seen=what != "answer")
    client.answer(reply())
    other.ask(ask("/", CURL))
    other.answer(reply())

    assert relay.links() == {}
    assert relay.capture.counters.total("otel_qtap.link.undecided") == 1
    expected = exchange(relay.client(), relay.server())
    assert relay.links() == expected


def test_an_answer_that_is_missing_is_waited_for(relay) -> None:
    """A backend that was asked and is silent may have answered: its next event tells."""
    client, silent, server = relay.client(), relay.server(), relay.server()
    client.ask(ask("/", CURL))
    silent.ask(ask("/", CURL))
    server.ask(ask("/", CURL))
    server.answer(reply())
    client.answer(reply())
    early = len(relay.play())
    silent.answer(reply(), seen=False)
    silent.ask(ask("/", CURL))
    silent.answer(reply())

    assert early == 1  # the client's
    assert relay.finish()
    assert relay.links() == {}


# Waiting -----------------------------------------------------------------------------------


def _egress(transactions: list[Transaction]) -> int:
    return sum(not transaction.direction.is_ingress for transaction in transactions)


def test_nothing_is_held_while_nobody_is_served(relay) -> None:
    """Nor in a process that has no clients at all."""
    relay.client()
    server, stranger = relay.server(), relay.server(process_id=4)
    for each in (server, stranger):
        each.ask(ask("/", CURL))
        each.answer(reply())

    assert _egress(relay.play()) == 2
    assert relay.counted("undecided", reason="no_parent") == 0


def test_what_may_be_for_a_client_waits_for_its_answer(relay) -> None:
    """Not longer: what was answered before, or came after it, cannot be for it."""
    streaming, client, server = relay.client(), relay.client(), relay.server()
    streaming.ask(ask("/events", CURL))
    streaming.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n")
    client.ask(ask("/", CURL))
    server.ask(ask("/", CURL))
    server.answer(reply())
    assert _egress(relay.play()) == 0

    client.answer(reply())
    assert _egress(relay.play()) == 1
    assert len(relay.links()) == 1


def test_nobody_waits_for_a_client_for_ever(relay) -> None:
    """After ten seconds it goes on as it is, and those it could be for are named."""
    patient, client, server = relay.client(), relay.client(), relay.server()
    patient.ask(ask("/poll", CURL))
    asked = name(client, client.ask(ask("/", CURL)))
    sent = name(server, server.ask(ask("/", CURL)))
    server.answer(reply())
    client.answer(reply())
    relay.play()
    linker = relay.capture.assembler.linker

    linker.tick(relay.timeline.now_ns + 9 * SECOND_NS)
    assert _egress(relay.play()) == 0
    linker.tick(relay.timeline.now_ns + 11 * SECOND_NS)
    assert relay.candidates() == {sent: [asked]}
    assert relay.counted("undecided", reason="expired") == 1


def test_an_answer_that_nobody_else_has_does_not_need_those_who_wait(relay) -> None:
    """A client that has polled for ten seconds is not the one it was for."""
    patient, client, server = relay.client(), relay.client(), relay.server()
    patient.ask(ask("/poll", CURL))
    asked = name(client, client.ask(ask("/old", CURL)))
    sent = name(server, server.ask(ask("/new", CURL)))
    server.answer(reply(LONG % 1))
    client.answer(reply(LONG % 1))
    relay.play()
    relay.capture.assembler.linker.tick(relay.timeline.now_ns + 11 * SECOND_NS)

    assert relay.links() == {sent: ("response", asked)}


def test_what_is_held_is_bounded_in_bytes() -> None:
    """The oldest goes first."""
    relay = seasoned(Relay(limits=AssemblerLimits(body_bytes=3_000_000)))
    patient = relay.client()
    patient.ask(ask("/poll", CURL))
    for _ in range(20):
        server = relay.server()
        server.ask(ask("/big", CURL))
        server.answer(reply(b"x" * 2_000_000))

    transactions = relay.play()
    assert 0 < _egress(transactions) == relay.counted("undecided", reason="overflow") < 20
    assert len(relay.finish()) == 21


def test_a_connection_that_is_over_is_forgotten(relay) -> None:
    """What is remembered of a process goes after a while, so nothing grows."""
    for _ in range(5):
        client, server = relay.client(), relay.server()
        exchange(client, server)
        for each in (client, server):
            each.client_closes()
            each.destroyed()
    relay.play()
    passive = relay.capture.assembler.linker.passive
    assert passive._histories
    relay.capture.assembler.linker.tick(relay.timeline.now_ns + 61 * SECOND_NS)

    assert not passive._histories
    (held,) = (s.value for s in relay.capture.counters.samples() if s.name.endswith("link.held"))
    assert held == 0


# Beside streams ----------------------------------------------------------------------------


def test_a_process_that_tells_its_streams_is_not_watched(relay) -> None:
    """Not even for the first request, which had been begun before that was known."""
    client = relay.client()
    client.ask(ask("/", CURL))
    server = relay.server(connecting=known(1))
    server.ask(ask("/", CURL), known(1))
    server.answer(reply())
    client.answer(reply(), known(1))

    assert [method for method, _ in relay.links().values()] == ["stream"]
    assert relay.capture.assembler.passive_for(client_connection(relay)) is None


def client_connection(relay: Relay):
    """Return a connection of the process, as the assembler would get it."""
    (_, talks) = next(iter(relay.capture.assembler._serving.items()))
    return next(iter(talks)).connection


def test_a_link_goes_on_to_the_neighbour(relay) -> None:
    """The other end of a connection to a backend is a child of what is linked here."""
    client, server = relay.client(), relay.server()
    peer = relay.timeline.open(
        Role.SERVER, 99, process_id=555, local_address="172.18.0.3", local_port=8001,
        remote_address="172.18.0.2", remote_port=10_000 + server.connection_id,
    )  # fmt: skip
    request = ask("/", CURL, "X-Request-ID: 17")
    client.ask(request)
    server.ask(request)
    peer.ask(request)
    peer.answer(reply())
    server.answer(reply())
    client.answer(reply())

    by_id = {t.request_id: t for t in relay.play()}
    neighbour = next(t for t in by_id.values() if t.process.pid == 555)
    attempt = by_id[neighbour.link.parent_id]
    assert by_id[attempt.link.parent_id].link is None
    assert neighbour.link.root_id == attempt.link.root_id == attempt.link.parent_id


@pytest.mark.parametrize("step", [CloseStep.RESET, CloseStep.REMOTE_CLOSED])
def test_a_backend_that_breaks_off_is_not_linked_by_its_answer(relay, step) -> None:
    """It has given none; with an identity it is linked nevertheless."""
    client, server = relay.client(), relay.server()
    asked = name(client, client.ask(ask("/", CURL, "X-Request-ID: 17")))
    sent = name(server, server.ask(ask("/", CURL, "X-Request-ID: 17")))
    server.step(step, 104)
    server.destroyed()
    client.answer(reply(b"bad gateway", 502))

    assert relay.links() == {sent: ("header", asked)}


@pytest.mark.parametrize("field", ["X-Request-ID: 17", "Accept: */*"])
def test_a_process_that_asks_itself_is_not_its_own_client(field) -> None:
    """Though it may be seen to receive a request before it is seen to have sent it."""
    relay = Relay(NGINX)
    sent = relay.server(remote_port=8001)
    received = relay.client(
        local_address="172.18.0.3", local_port=8001,
        remote_address="172.18.0.2", remote_port=SERVER_PORTS + sent.connection_id,
    )  # fmt: skip
    request, answer = ask("/only/here", CURL, field), reply(LONG % 1)
    received.ask(request)
    sent.ask(request)
    received.answer(answer)
    sent.answer(answer)

    by_role = {t.direction.is_ingress: t for t in relay.play()}
    assert by_role[True].link.parent_id == by_role[False].request_id
    assert by_role[False].link is None


def test_processes_that_ask_each_other_do_not_wait_for_each_other() -> None:
    """Whoever seems to have caused itself, in a circle, is passed on as it is."""
    relay = Relay(NGINX)
    here, there = "172.18.0.2", "172.18.0.3"
    request, answer = ask("/", CURL, "X-Request-ID: 17"), reply(LONG % 1)
    ends: list[Script] = []
    for process_id, peer_id, client, server in ((1, 2, here, there), (2, 1, there, here)):
        sent = relay.server(
            process_id=process_id, local_address=client, remote_address=server, remote_port=80
        )
        received = relay.client(
            process_id=peer_id, local_address=server, local_port=80,
            remote_address=client, remote_port=SERVER_PORTS + sent.connection_id,
        )  # fmt: skip
        received.process_id, sent.process_id = peer_id, process_id
        ends = [received, *ends, sent]  # each seems to have received first
    for script in ends:
        script.ask(request)
    for script in ends:
        script.answer(answer)

    seen = {t.request_id: t for t in relay.play()}
    assert len(seen) == 4
    for request_id in seen:
        above = [request_id]
        while (link := seen[above[-1]].link) is not None:
            assert link.parent_id not in above
            above.append(link.parent_id)
    assert relay.counted("undecided", reason="circular") == 1
