"""What a mark should have been, by a snapshot of what the thread had in hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conversations import IN_NO_TASK, UNREADABLE, ending
from haproxy.memory import ANSWER, LAYOUT, Memory, traffic

from otel_qtap.events import NO_MARK, DataEvent, Role, StreamState
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Offsets, StreamSource
from otel_qtap.haproxy.marks import (
    mark_of,
    marked_ns,
    put_right,
    seen_with,
    tells_apart,
    without_mark,
)

_TRUTHS = [DEFAULT_OFFSETS, Offsets(64, 16, 4)]


@pytest.mark.parametrize("truth", _TRUTHS, ids=lambda o: "-".join(map(str, o)))
def test_a_snapshot_gives_the_mark_of_the_kernel_side(truth) -> None:
    """In a stream, in another task and in none."""
    memory = Memory(truth)
    memory.believe(truth)
    states = set()
    for snapshot, event in traffic(memory, 60):
        assert mark_of(snapshot, memory.believed) == event.stream
        states.add(event.stream.state)

    assert states == {StreamState.KNOWN, StreamState.OTHER, StreamState.NONE}


def test_a_task_without_a_stream_is_ending_it() -> None:
    """HAProxy takes the stream from its task before it frees it."""
    memory = Memory()
    stream = memory.begin(1)
    memory.put(stream.task + DEFAULT_OFFSETS.process + 8, 0)
    snapshot, _ = memory.send(stream)

    assert mark_of(snapshot, LAYOUT) == ending(stream.task)


def test_a_snapshot_by_wrong_offsets_tells_what_it_can() -> None:
    """Which task it was, but not what its stream held: that was not looked at."""
    truth = Offsets(40, 8, 12)
    memory = Memory(truth)
    stream = memory.begin(1)
    right = replace(LAYOUT, offsets=truth)

    assert mark_of(memory.send(stream)[0], right) == UNREADABLE
    assert mark_of(memory.send(None)[0], right).state is StreamState.OTHER
    assert mark_of(memory.send(None, in_task=False)[0], right) == IN_NO_TASK
    seen = seen_with(memory.send(stream)[0], truth)
    assert (seen.task, seen.stream_address) == (0, 0)


def test_a_mark_is_put_right_if_a_snapshot_says_how() -> None:
    """What had none gets none, whatever the snapshot says: nobody asked."""
    memory = Memory(Offsets(32, 8, 20))
    right = replace(LAYOUT, offsets=memory.offsets)
    snapshot, event = memory.send(memory.begin(1), ANSWER, Role.SERVER)
    truth = memory.truth[event.timestamp_ns]
    assert event.stream != truth

    def mark(*arguments: object) -> object:
        changed = put_right(event, *arguments)  # type: ignore[arg-type]
        assert isinstance(changed, DataEvent)
        return changed.stream

    assert mark(snapshot, right) == truth
    assert mark(None, right) == UNREADABLE
    assert mark(snapshot, replace(right, source=StreamSource.PROBE)) == UNREADABLE
    assert put_right(without_mark(event), snapshot, right) == event._replace(stream=NO_MARK)


def test_the_mark_of_an_opening_may_be_older_than_the_event() -> None:
    """It is told when the first bytes pass; there may have been a try to read them before."""
    memory = Memory()
    opened = memory.connect(None, 5)
    late = opened._replace(timestamp_ns=memory.now_ns + 10**9)

    assert marked_ns(late) == memory.now_ns
    accepted = late._replace(connect_started_ns=0, established_ns=7)
    assert marked_ns(accepted) == 7
    assert marked_ns(accepted._replace(established_ns=0)) == late.timestamp_ns
    assert put_right(late, None, LAYOUT) == late._replace(connecting=UNREADABLE)
    assert without_mark(late) == late._replace(connecting=NO_MARK)


def test_marks_tell_which_offsets_they_were_made_by() -> None:
    """If these differ in what they say; else nobody can know."""
    memory = Memory(Offsets(32, 8, 20))
    wrong, right = LAYOUT, replace(LAYOUT, offsets=memory.offsets)
    stream = memory.begin(1)
    snapshot, event = memory.send(stream)
    assert not tells_apart(event, snapshot, right, wrong)

    memory.believe(memory.offsets)
    snapshot, event = memory.send(stream)
    assert tells_apart(event, snapshot, right, wrong)
    assert not tells_apart(event, snapshot, right, right)
    snapshot, event = memory.send(None)
    assert not tells_apart(event, snapshot, right, wrong)
