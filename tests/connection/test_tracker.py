"""Order and bookkeeping: what a reader of a connection is told, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversations import Script

from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection, ConnectionTracker
from otel_qtap.counters import CounterSet
from otel_qtap.events import (
    CloseEvent,
    DataEvent,
    Flow,
    LostEvent,
    ProcessEvent,
    ProcessStep,
    Role,
)


class Notes:
    """A reader that notes what it is told."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.told: list[tuple[object, ...]] = []

    def stream_data(self, event: DataEvent) -> None:
        self.told.append((event.flow.name, event.data))

    def stream_gap(self, flow: Flow, size: int, timestamp_ns: int) -> None:
        assert timestamp_ns >= self.connection.opened_ns
        self.told.append((flow.name, "gap", size))

    def stream_step(self, event: CloseEvent) -> None:
        self.told.append((event.step.name,))

    def give_up(self, timestamp_ns: int) -> None:
        self.told.append(("given up", timestamp_ns))


class Readers:
    """Opens a reader for each connection and keeps them by id."""

    def __init__(self) -> None:
        self.by_id: dict[int, Notes] = {}

    def open(self, connection: Connection) -> Notes:
        notes = self.by_id[connection.id] = Notes(connection)
        return notes


@pytest.fixture
def readers() -> Readers:
    return Readers()


@pytest.fixture
def make_tracker(readers, counters) -> Callable[..., ConnectionTracker]:
    def make(capacity: int = 100) -> ConnectionTracker:
        return ConnectionTracker(readers.open, counters, capacity=capacity)

    return make


def feed(tracker: ConnectionTracker, script: Script) -> None:
    for event in script.events:
        tracker.consume(event)
    script.events = []


def test_a_connection_knows_what_its_opening_said(make_tracker, readers) -> None:
    """Ends, role, process and times, for whoever reads it."""
    script = Script(Role.CLIENT, connect_started_ns=5, established_ns=6)
    feed(make_tracker(), script)

    connection = readers.by_id[77].connection
    assert (connection.id, connection.role, connection.process_id) == (77, Role.CLIENT, 987)
    assert connection.local == Peer("172.18.0.2", 40404)
    assert connection.remote == Peer("172.18.0.3", 8001)
    assert (connection.connect_started_ns, connection.established_ns) == (5, 6)
    assert not connection.joined_late


def test_bytes_of_both_flows_come_in_order(make_tracker, readers) -> None:
    """Each flow has positions of its own."""
    script = Script(Role.SERVER)
    script.ask(b"abc", cuts=[1])
    script.answer(b"xyz")
    script.ask(b"def")
    feed(make_tracker(), script)

    assert readers.by_id[77].told == [
        ("RECEIVE", b"a"), ("RECEIVE", b"bc"), ("SEND", b"xyz"), ("RECEIVE", b"def"),
    ]  # fmt: skip


def test_a_jump_is_a_gap_before_the_bytes_behind_it(make_tracker, readers, counters) -> None:
    """With its size; the other flow is not concerned."""
    script = Script(Role.SERVER)
    script.ask(b"abc", seen=False)
    script.answer(b"x")
    script.ask(b"d")
    feed(make_tracker(), script)

    assert readers.by_id[77].told == [("SEND", b"x"), ("RECEIVE", "gap", 3), ("RECEIVE", b"d")]
    assert counters.value("otel_qtap.connection.gaps") == 1
    assert counters.value("otel_qtap.connection.gap_bytes") == 3


def test_bytes_that_were_not_copied_are_a_gap_behind_the_ones_that_were(
    make_tracker, readers
) -> None:
    """A record without bytes is a gap and nothing else; what follows joins on."""
    script = Script(Role.SERVER)
    script.answer_cut(b"ab", 10)
    script.answer_cut(b"", 7)
    script.answer(b"c")
    feed(make_tracker(), script)

    assert readers.by_id[77].told == [
        ("SEND", b"ab"), ("SEND", "gap", 8), ("SEND", "gap", 7), ("SEND", b"c"),
    ]  # fmt: skip


def test_a_late_connection_has_no_gap_before_its_first_bytes(make_tracker, readers) -> None:
    """Each flow begins where its first piece is; after that positions count."""
    script = Script(Role.SERVER, joined_late=True, offset=5000)
    script.ask(b"abc")
    script.answer(b"x")
    script.ask(b"def", seen=False)
    script.ask(b"g")
    feed(make_tracker(), script)

    assert readers.by_id[77].told == [
        ("RECEIVE", b"abc"), ("SEND", b"x"), ("RECEIVE", "gap", 3), ("RECEIVE", b"g"),
    ]  # fmt: skip


def test_bytes_that_were_told_before_are_not_told_again(make_tracker, readers, counters) -> None:
    """Positions never go back; a record that says so is from a broken recording."""
    script = Script(Role.SERVER)
    script.ask(b"abc")
    script.events.append(script.events[-1])
    feed(make_tracker(), script)

    assert readers.by_id[77].told == [("RECEIVE", b"abc")]
    assert counters.value("otel_qtap.connection.strays") == 1


def test_the_end_is_told_once_and_forgets_the_connection(make_tracker, readers, counters) -> None:
    """What comes behind it is a stray."""
    script = Script(Role.SERVER)
    script.ask(b"abc")
    script.client_closes()
    script.destroyed()
    tracker = make_tracker()
    feed(tracker, script)

    assert [t[0] for t in readers.by_id[77].told] == [
        "RECEIVE", "REMOTE_CLOSED", "RECEIVED_END", "DESTROYED",
    ]  # fmt: skip
    assert len(tracker) == 0

    script.ask(b"late")
    script.destroyed()
    feed(tracker, script)
    assert counters.value("otel_qtap.connection.strays") == 2
    assert len(readers.by_id[77].told) == 4


def test_connections_are_kept_apart_by_their_id_alone(make_tracker, readers) -> None:
    """The same process, addresses and ports: two connections, one after the other or at once."""
    tracker = make_tracker()
    first, second = Script(connection_id=1), Script(connection_id=2)
    first.ask(b"one")
    second.ask(b"two")
    for one, two in zip(first.events, second.events, strict=True):
        tracker.consume(one)
        tracker.consume(two)

    assert readers.by_id[1].told == [("RECEIVE", b"one")]
    assert readers.by_id[2].told == [("RECEIVE", b"two")]


@pytest.mark.parametrize("events", [1, 2], ids=["first", "second"])
def test_events_without_an_opening_are_counted(make_tracker, readers, counters, events) -> None:
    """The opening was lost: nothing is known of the connection, so nothing is told."""
    script = Script()
    script.ask(b"abc")
    script.destroyed()
    script.events = script.events[1 : 1 + events]
    feed(make_tracker(), script)

    assert readers.by_id == {}
    assert counters.value("otel_qtap.connection.strays") == events


def test_an_opening_that_is_repeated_or_has_no_role_is_not_followed(
    make_tracker, readers, counters
) -> None:
    """The first one holds."""
    tracker = make_tracker()
    script = Script()
    script.ask(b"abc")
    opened = script.events[0]
    feed(tracker, script)
    tracker.consume(opened)
    tracker.consume(opened._replace(connection_id=78, role=Role.UNKNOWN))

    assert list(readers.by_id) == [77]
    assert readers.by_id[77].told == [("RECEIVE", b"abc")]
    assert counters.value("otel_qtap.connection.strays") == 2


def test_events_of_processes_and_losses_are_not_for_the_tracker(make_tracker, counters) -> None:
    """They pass without a trace."""
    tracker = make_tracker()
    tracker.consume(ProcessEvent(1, 2, ProcessStep.EXITED, 0, ""))
    tracker.consume(LostEvent(1, "ring_full", 3))

    assert len(tracker) == 0
    assert counters.value("otel_qtap.connection.strays") == 0


def test_a_connection_that_nobody_reads_is_followed_silently(counters) -> None:
    """Filtered connections are known, so that their events are no strays."""
    tracker = ConnectionTracker(lambda _: None, counters)
    script = Script()
    script.ask(b"abc")
    script.ask(b"d", seen=False)
    script.ask(b"e")
    feed(tracker, script)
    assert len(tracker) == 1
    script.destroyed()
    feed(tracker, script)

    assert len(tracker) == 0
    assert counters.value("otel_qtap.connection.strays") == 0
    assert counters.value("otel_qtap.connection.gaps") == 0


def test_a_full_table_gives_up_who_was_silent_longest(make_tracker, readers, counters) -> None:
    """Not who is oldest; its reader hears of it, at the time it was last heard of."""
    tracker = make_tracker(capacity=3)
    scripts = [Script(connection_id=n) for n in range(4)]
    for script in scripts[:3]:
        feed(tracker, script)
    scripts[0].ask(b"still here")
    feed(tracker, scripts[0])
    scripts[1].now_ns += 10
    scripts[1].ask(b"so am I")
    feed(tracker, scripts[1])

    feed(tracker, scripts[3])

    assert len(tracker) == 3
    assert readers.by_id[2].told == [("given up", 1_000_000)]
    assert all(("given up" not in t) for n in (0, 1, 3) for t in readers.by_id[n].told)
    assert counters.value("otel_qtap.connection.evicted") == 1


def test_connections_whose_end_was_lost_are_given_up(make_tracker, readers, counters) -> None:
    """Unless they were heard of lately: then their end may still be on the way."""
    tracker = make_tracker()
    for number, now_ns in ((1, 100), (2, 100), (3, 900)):
        feed(tracker, Script(connection_id=number, timestamp_ns=now_ns))

    tracker.reconcile({1: (0, 0)}, before_ns=500)

    assert len(tracker) == 2
    assert readers.by_id[2].told == [("given up", 100)]
    assert readers.by_id[1].told == readers.by_id[3].told == []
    assert counters.value("otel_qtap.connection.ends_lost") == 1


def test_bytes_that_nothing_follows_are_missed(make_tracker, readers, counters) -> None:
    """The kernel has counted them; of what was heard of lately the account may be old."""
    tracker = make_tracker()
    silent, busy = Script(connection_id=1), Script(connection_id=2)
    busy.now_ns += 1
    for script in (silent, busy):
        script.ask(b"GET")
        feed(tracker, script)

    for _ in range(2):  # what is missed is missed once
        tracker.reconcile({1: (3, 12), 2: (8, 0)}, before_ns=busy.now_ns)

    assert [t for t in readers.by_id[1].told if "gap" in t] == [("SEND", "gap", 12)]
    assert not any("gap" in told for told in readers.by_id[2].told)
    assert counters.value("otel_qtap.connection.gap_bytes") == 12


def test_closing_gives_everything_up(make_tracker, readers) -> None:
    """With the time at which the agent stopped."""
    tracker = make_tracker()
    for number in (1, 2):
        feed(tracker, Script(connection_id=number))

    tracker.close(123)

    assert len(tracker) == 0
    assert [notes.told for notes in readers.by_id.values()] == [[("given up", 123)]] * 2


def test_what_is_followed_can_be_read_from_metrics(make_tracker, counters: CounterSet) -> None:
    """The number of open connections is a gauge, those so far a counter."""
    tracker = make_tracker()
    for number in (1, 2):
        feed(tracker, Script(connection_id=number))
    gone = Script(connection_id=2)
    gone.events = []
    gone.destroyed()
    feed(tracker, gone)

    samples = {s.name: s.value for s in counters.samples()}
    assert samples["otel_qtap.connection.active"] == 1
    assert samples["otel_qtap.connection.opened"] == 2
