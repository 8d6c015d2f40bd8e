"""
A HAProxy that nobody asks anything: its health checks are told apart from requests all the same.

There is no request by which the offsets could be verified. But HAProxy opens the connection of
a check in the task of that check, and what that task's function is can be seen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from haproxy.memory import LAYOUT, REQUEST, Memory

from otel_qtap.counters import CounterSet
from otel_qtap.events import DataEvent, Event, Flow, OpenEvent, Role, SnapshotEvent, StreamState
from otel_qtap.haproxy.layout import Layout, Offsets
from otel_qtap.haproxy.marks import marked_ns
from otel_qtap.haproxy.streams import StreamMarks

CHECK = 0x5555_0040_0000
WITH_CHECK = replace(LAYOUT, process_check=CHECK)
SECOND_NS = 1_000_000_000


class Idle(Memory):
    """A HAProxy that only checks its servers."""

    def __init__(self, offsets: Offsets = LAYOUT.offsets, function: int = CHECK) -> None:
        super().__init__(offsets)
        self.put(self.other_task + self.offsets.process, function)

    def check(self, connection_id: int) -> list[Event]:
        """What the kernel side tells of one check."""
        opened = self.connect(None, connection_id)
        connecting, _ = self._seen_again(connection_id)
        snapshot, sent = self.send(None, connection_id=connection_id)
        return [connecting._replace(is_connecting=True), opened, snapshot, sent]

    def _seen_again(self, connection_id: int) -> tuple[SnapshotEvent, DataEvent]:
        self.now_ns -= self.tick_ns
        return self.send(None, connection_id=connection_id)


def accepted(memory: Idle, layout: Layout) -> list[Event]:
    """Let checks be made for some time; returns what came through."""
    found: list[Event] = []
    streams = StreamMarks(found.append, CounterSet())
    streams.learn(memory.process_id, layout)
    memory.tick_ns = SECOND_NS // 20
    for number in range(1, 60):
        for event in memory.check(number):
            streams.consume(event)
    streams.close()
    return found


def states(events: list[Event]) -> set[StreamState]:
    opened = {e.connecting.state for e in events if isinstance(e, OpenEvent)}
    return opened | {e.stream.state for e in events if isinstance(e, DataEvent)}


def test_checks_keep_their_marks() -> None:
    """From the first one on."""
    memory = Idle()
    found = accepted(memory, WITH_CHECK)

    assert len(found) == 2 * 59
    assert states(found) == {StreamState.OTHER}


@pytest.mark.parametrize(
    ("memory", "layout"),
    [
        pytest.param(Idle(), LAYOUT, id="function-not-exported"),
        pytest.param(Idle(function=0x5555_0050_0000), WITH_CHECK, id="another-function"),
        pytest.param(Idle(Offsets(48, 24, 12)), WITH_CHECK, id="other-offsets"),
        pytest.param(Idle(), replace(WITH_CHECK, contexts=1 << 40), id="other-contexts"),
    ],
)
def test_what_nothing_speaks_for_is_taken_away(memory, layout) -> None:
    """A wrong guess must not make a health check of a request."""
    found = accepted(memory, layout)

    assert len(found) == 2 * 59
    assert states(found) == {StreamState.NOT_ASKED}


def test_streams_are_verified_on_their_own() -> None:
    """That checks are known says nothing of where a stream has its number: none was seen yet."""
    memory = Idle()
    found: list[Event] = []
    streams = StreamMarks(found.append, CounterSet())
    streams.learn(memory.process_id, WITH_CHECK)
    for event in memory.check(1):
        streams.consume(event)
    _, sent = memory.send(memory.begin(2), connection_id=2)
    streams.consume(sent)
    streams.close()

    marks = {marked_ns(e): e.stream for e in found if isinstance(e, DataEvent)}
    assert [mark.state for mark in marks.values()] == [StreamState.OTHER, StreamState.NOT_ASKED]


def test_a_connection_passed_through_tells_where_streams_are_numbered() -> None:
    """``mode tcp``: no answer is sent by a stream, but each gets the first bytes of one client."""
    memory = Memory()
    found: list[Event] = []
    streams = StreamMarks(found.append, CounterSet())
    streams.learn(memory.process_id, LAYOUT)
    for number in range(1, 40):
        stream = memory.begin(number)
        snapshot, read = memory.send(stream, REQUEST, Role.SERVER, connection_id=number)
        streams.consume(snapshot)
        streams.consume(read._replace(flow=Flow.RECEIVE))
        memory.end(stream)
    streams.close()

    assert [e.stream for e in found if isinstance(e, DataEvent)] == list(memory.truth.values())
