"""Connection events: when they come, what they count, and that readers notice nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from conversations import EPOCH_OFFSET_NS, NoFacts, Script

from otel_qtap.connection.tracker import ConnectionTracker
from otel_qtap.events import CloseStep, Flow, Role
from otel_qtap.plugins.connection_report import ConnectionReporter
from otel_qtap.stores.connection_event import System
from otel_qtap.transaction.model import Direction

MS = 1_000_000
S = 1000 * MS
OPENED_NS = 1_000_000  # by Script
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@dataclass
class Reader:
    """Keeps what it is told."""

    calls: list[tuple[object, ...]] = field(default_factory=list)

    def stream_data(self, event) -> None:
        self.calls.append(("data", event.flow, event.data))

    def stream_gap(self, flow, size, timestamp_ns) -> None:
        self.calls.append(("gap", flow, size, timestamp_ns))

    def stream_step(self, event) -> None:
        self.calls.append(("step", event.step))

    def give_up(self, timestamp_ns) -> None:
        self.calls.append(("give_up", timestamp_ns))


class Names(NoFacts):
    """Knows one address."""

    def name_of(self, process_id: int, address: str) -> str:
        return {(987, "172.18.0.3"): "backend-api-1"}.get((process_id, address), "")


class World:
    """A tracker whose connections are reported on; their ids are ``c1``, ``c2``, …"""

    def __init__(self, counters, *, stores: int = 1, capacity: int = 100) -> None:
        self.events: list = []
        self.readers: list[Reader] = []
        self.reporter = ConnectionReporter(
            consumers=[self] * stores,
            facts=Names(),
            system=System(hostname="edge", instance="this-run"),
            counters=counters,
            epoch_offset_ns=lambda: EPOCH_OFFSET_NS,
            tags=["team:proxies"],
        )
        self.tracker = ConnectionTracker(self._open, counters, capacity=capacity)

    def consume_event(self, event) -> None:
        self.events.append(event)

    def _open(self, connection):
        self.readers.append(Reader())
        connection_id = f"c{len(self.readers)}"
        return self.reporter.follow(connection, self.readers[-1], connection_id)

    def play(self, script: Script) -> None:
        for event in script.events:
            self.tracker.consume(event)
        script.events = []

    def told(self) -> list[tuple[str, int, bool]]:
        """Return id, part and whether it is the last, of each event so far."""
        return [(e.connection_id, e.part, e.is_finalized) for e in self.events]


@pytest.fixture
def world(counters) -> World:
    return World(counters)


def test_cadence(world) -> None:
    """Half a second after the opening, then every ten seconds, then once at the end."""
    script = Script()
    world.play(script)
    due = OPENED_NS + 500 * MS
    times = [due - 1, due, due + 1, due + 10 * S - 1, due + 10 * S, due + 20 * S, due + 29 * S]
    told_at = []
    for now_ns in times:
        before = len(world.events)
        world.reporter.tick(now_ns)
        told_at += [now_ns] * (len(world.events) - before)
    script.now_ns = due + 29 * S
    script.destroyed()
    world.play(script)

    assert told_at == [due, due + 10 * S, due + 20 * S]
    assert world.told() == [("c1", 0, False), ("c1", 1, False), ("c1", 2, False), ("c1", 3, True)]
    assert [event.timestamp_ns - EPOCH_OFFSET_NS for event in world.events[:3]] == told_at


def test_a_late_tick_makes_one_report(world) -> None:
    """Not all that were missed."""
    world.play(Script())
    world.reporter.tick(OPENED_NS + 60 * S)
    world.reporter.tick(OPENED_NS + 60 * S)
    assert world.told() == [("c1", 0, False)]
    world.reporter.tick(OPENED_NS + 70 * S)
    assert world.told()[1:] == [("c1", 1, False)]


def test_a_short_connection_has_one_report(world, make_transaction) -> None:
    """What it moved, what it spoke, from when to when; nothing comes after it."""
    script = Script()
    script.ask(GET)
    script.answer(OK)
    world.play(script)
    world.reporter.consume(make_transaction(connection_id="c1"))
    script.client_closes()
    closed_ns = script.destroyed()
    world.play(script)
    world.reporter.tick(OPENED_NS + 60 * S)

    (event,) = world.events
    assert (event.bytes_received, event.bytes_sent) == (len(GET), len(OK))
    assert (event.l7_protocol, event.endpoint_id) == ("http1", "localhost")
    assert (event.created_ns, event.closed_ns) == (OPENED_NS + EPOCH_OFFSET_NS, closed_ns)
    record = event.record()
    assert record["finalized"] is True
    assert "part" not in record
    assert record["destination"]["exe"] == "/usr/sbin/haproxy"
    assert record["source"] == {"address": {"family": "ipv4", "ip": "192.0.2.7", "port": 51234}}
    assert record["system"] == {"hostname": "edge", "agent": "tap", "agentInstance": "this-run"}
    assert record["tags"] == {
        "team": ["proxies"],
        "bin": ["haproxy"],
        "host": ["edge"],
        "protocol": ["http1"],
        "strategy": ["observe"],
    }


def test_an_egress_connection(world) -> None:
    """It begins with ``connect``; until a request names the endpoint, its address does."""
    world.play(Script(Role.CLIENT))
    world.reporter.tick(OPENED_NS + S)
    (event,) = world.events
    assert event.direction is Direction.EGRESS_INTERNAL
    assert event.created_ns == OPENED_NS - 500 + EPOCH_OFFSET_NS
    assert (event.endpoint_id, event.l7_protocol) == ("backend-api-1", "http1")
    assert event.record()["source"]["address"]["port"] == 40404


def test_the_first_request_names_the_endpoint(world, make_transaction, make_request) -> None:
    """And the protocol; later ones change nothing, nor do those of other connections."""
    world.play(Script())
    world.reporter.tick(OPENED_NS + S)
    for host, connection_id, version in (
        ("other", "c2", "1.1"),
        ("first:1", "c1", "2"),
        ("second", "c1", "1.1"),
    ):
        request = make_request(headers=(("host", host),), version=version)
        world.reporter.consume(make_transaction(connection_id=connection_id, request=request))
    world.reporter.tick(OPENED_NS + 60 * S)
    assert [(event.endpoint_id, event.l7_protocol) for event in world.events] == [
        ("172.18.0.2", "http1"),
        ("first", "http2"),
    ]


def test_bytes_that_nobody_saw_count(world) -> None:
    """The tracker knows of them by their places."""
    script = Script()
    script.ask(GET, seen=False)
    script.ask(GET)
    script.answer_cut(OK[:10], size=5000)
    script.destroyed()
    world.play(script)
    (event,) = world.events
    assert (event.bytes_received, event.bytes_sent) == (2 * len(GET), 5000)


def test_a_connection_that_was_joined_late_and_silent(world) -> None:
    """Nothing is known to have moved."""
    world.play(Script(joined_late=True))
    world.reporter.tick(OPENED_NS + S)
    assert (world.events[0].bytes_received, world.events[0].bytes_sent) == (0, 0)


def test_a_connection_that_is_given_up(world) -> None:
    """The last report says so and names no end: nobody saw one."""
    world.play(Script())
    world.tracker.close(OPENED_NS + S)
    (event,) = world.events
    assert (event.is_finalized, event.closed_ns) == (True, 0)
    assert "closedAt" not in event.record()


def test_connections_are_told_apart(counters) -> None:
    """Each in its own time; one that was evicted is told of at once."""
    world = World(counters, capacity=1)
    world.play(Script(connection_id=1))
    world.play(Script(connection_id=2, timestamp_ns=OPENED_NS + S))
    assert world.told() == [("c1", 0, True)]
    world.reporter.tick(OPENED_NS + S + 499 * MS)
    assert len(world.events) == 1
    world.reporter.tick(OPENED_NS + S + 500 * MS)
    assert world.told()[1:] == [("c2", 0, False)]


def test_the_reader_is_told_everything_before_the_report(world) -> None:
    """As if nobody stood between."""
    script = Script()
    script.ask(GET)
    script.answer_cut(OK[:10], size=len(OK))
    script.server_closes()
    script.destroyed()
    calls_before: list[int] = []
    world.consume_event = lambda _: calls_before.append(len(world.readers[0].calls))
    world.play(script)
    assert world.readers[0].calls == [
        ("data", Flow.RECEIVE, GET),
        ("data", Flow.SEND, OK[:10]),
        ("gap", Flow.SEND, len(OK) - 10, OPENED_NS + 2000),
        ("step", CloseStep.LOCAL_CLOSED),
        ("step", CloseStep.DESTROYED),
    ]
    assert calls_before == [5]


def test_every_store_gets_every_event(counters) -> None:
    """The same one."""
    world = World(counters, stores=2)
    world.play(Script())
    world.reporter.tick(OPENED_NS + S)
    assert world.told() == [("c1", 0, False)] * 2
    assert world.events[0] is world.events[1]


def test_metrics_of_connections(counters, make_transaction) -> None:
    """By direction, for all connections, whether or not anybody takes events."""
    world = World(counters, stores=0)
    served, asked = Script(connection_id=1), Script(Role.CLIENT, connection_id=2)
    for script in (served, asked):
        script.ask(GET)
        script.answer(OK)
    served.now_ns = OPENED_NS + 2 * S
    served.destroyed()
    for script in (served, asked):
        world.play(script)

    def value(name: str, **labels: str) -> int:
        return counters.value(f"qtap.connection.{name}", **labels)

    assert value("open", direction="ingress") == value("open", direction="egress-internal") == 1
    assert value("close", direction="ingress") == 1
    assert value("close", direction="egress-internal") == 0
    assert value("bytes_recv", direction="ingress") == len(GET)
    assert value("bytes_sent", direction="ingress") == len(OK)
    assert value("protocol", protocol="http1") == 1
    gauges = {s.name: s.value for s in counters.samples() if s.is_gauge}
    assert gauges["qtap.connection.active_total"] == 1
    (duration,) = [h for h in counters.histograms() if dict(h.labels) == {"direction": "ingress"}]
    assert (duration.name, sum(duration.counts)) == ("qtap.connection.duration_ms", 1)
    assert duration.total == pytest.approx(2000, abs=1)
