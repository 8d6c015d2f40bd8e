"""
No event of a HAProxy goes on with a mark that is wrong, and none is lost on the way.

The kernel side is played by ``memory.py``: it marks by the offsets that it was told last, and
what it handed over before waits in a ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import pytest
from conversations import UNREADABLE, Script
from haproxy.memory import ANSWER, LAYOUT, Memory, Stream, traffic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_qtap.counters import CounterSet
from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    LogEvent,
    LostEvent,
    OpenEvent,
    ProcessEvent,
    ProcessStep,
    Role,
    SnapshotEvent,
    StreamMark,
    StreamState,
)
from otel_qtap.haproxy import streams
from otel_qtap.haproxy.calibration import Verdict
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Layout, Offsets, StreamSource
from otel_qtap.haproxy.marks import marked_ns
from otel_qtap.haproxy.streams import StreamMarks

OTHERS = 500
"""The connection of a process that is no HAProxy."""
SECOND_NS = 1_000_000_000
PID = 987
KNOWN = StreamState.KNOWN
Seen = tuple[SnapshotEvent, DataEvent]


class Host:
    """The kernel side, a ring between, and what comes out at the other end."""

    def __init__(self, *memories: Memory, ring: int = 0) -> None:
        """``ring`` records are on their way all the time."""
        self.memories = memories
        self.accepted: list[Event] = []
        self.verdicts: list[tuple[int, Verdict, str]] = []
        self.doubts: list[tuple[int, str, int, str]] = []
        self.distrusted: list[tuple[int, int]] = []
        self.counters = CounterSet()
        self.streams = StreamMarks(self.accepted.append, self.counters, on_verdict=self._on_verdict)
        self.streams.on_doubt = lambda *doubt: self.doubts.append(doubt)
        self.streams.on_distrust = lambda *marks: self.distrusted.append(marks)
        self._ring_size = ring
        self.ring: deque[Event] = deque()
        self._is_left_alone: set[int] = set()
        """Processes of which no more snapshots are taken."""

    def learn(self) -> Host:
        """Let the layout of each process be known."""
        for memory in self.memories:
            self.streams.learn(memory.process_id, memory.believed)
        return self

    def _on_verdict(self, layout: Layout, verdict: Verdict, reason: str) -> None:
        self.verdicts.append((layout.number, verdict, reason))
        for memory in self.memories:
            if memory.believed.number != layout.number:
                continue
            if verdict is Verdict.CHANGED:
                memory.believe(layout.offsets)
            else:
                self._is_left_alone.add(memory.process_id)

    def feed(self, seen: Iterable[Seen | Event]) -> Host:
        """Let things happen; what does not fit into the ring comes out of it."""
        for each in seen:
            records = each if _is_pair(each) else (each,)
            self.ring += [record for record in records if self._is_wanted(record)]
            while len(self.ring) > self._ring_size:
                self.streams.consume(self.ring.popleft())
        return self

    def _is_wanted(self, record: Event) -> bool:
        return not isinstance(record, SnapshotEvent) or record.process_id not in self._is_left_alone

    def look_again(self) -> None:
        """Let more snapshots be taken."""
        self._is_left_alone.clear()

    def empty(self) -> Host:
        """Let everything come that is in the ring."""
        while self.ring:
            self.streams.consume(self.ring.popleft())
        return self

    @property
    def marks(self) -> list[StreamMark]:
        """The marks that came out."""
        return [mark_on(event) for event in self.accepted if isinstance(event, Marked)]

    def wrong(self, *, but_for_the_number: bool = False) -> list[Event]:
        """Return events with a mark that is neither the true one nor taken away."""
        truth = {time: mark for memory in self.memories for time, mark in memory.truth.items()}
        return [
            event
            for event in self.accepted
            if isinstance(event, Marked) and event.connection_id != OTHERS
            and not _is_right(mark_on(event), truth[marked_ns(event)], but_for_the_number)
        ]  # fmt: skip


def _is_right(mark: StreamMark, truth: StreamMark, but_for_the_number: bool) -> bool:
    if but_for_the_number:
        mark, truth = mark._replace(serial=0), truth._replace(serial=0)
    return mark in (truth, NO_MARK, UNREADABLE)


Marked = DataEvent | OpenEvent | CloseEvent


def _is_pair(each: object) -> bool:
    return type(each) is tuple


def mark_on(event: Marked) -> StreamMark:
    return event.connecting if isinstance(event, OpenEvent) else event.stream


def answers(memory: Memory, amount: int) -> Iterator[Seen]:
    """Yield so many answers on one connection."""
    for _ in range(amount):
        stream = memory.begin(1)
        yield memory.send(stream, ANSWER, Role.SERVER)
        memory.end(stream)


def other_process() -> Script:
    """A connection of a process that is no HAProxy."""
    script = Script(process_id=5, connection_id=OTHERS)
    for _ in range(3):
        script.ask(b"GET / HTTP/1.1\r\n\r\n")
        script.answer(ANSWER)
    return script


# Others ------------------------------------------------------------------------------------


def test_other_processes_are_passed_on_at_once() -> None:
    """As they are: nobody looks at them twice."""
    host = Host()

    for event in (script := other_process()).events:
        host.streams.consume(event)
        assert host.accepted[-1] is event

    assert len(host.accepted) == len(script.events)
    assert not host.streams.is_needed
    assert host.counters.value("otel_qtap.link.events_held") == 0


def test_what_has_no_connection_never_waits() -> None:
    """Processes and losses; a snapshot is for nobody else."""
    host = Host(Memory()).learn().feed(answers(Memory(), 3))
    assert not host.accepted

    process = ProcessEvent(1, 5, ProcessStep.EXECUTED, 0, "/bin/true")
    loss = LostEvent(2, "ring_full", 3)
    host.feed([process, loss])

    assert host.accepted == [process, loss]


def test_a_snapshot_of_an_unknown_process_is_dropped() -> None:
    """It was taken before the process ended."""
    snapshot, event = next(answers(Memory(), 1))
    host = Host().feed([snapshot, event])

    assert host.accepted == [event]


def test_a_line_of_a_log_waits_behind_what_it_is_about() -> None:
    """Or it would seem to be about an earlier request; it is for nobody who takes the rest."""
    memory = Memory()
    host = Host(memory).learn()
    host.streams.on_line = host.accepted.append
    first, line = LogEvent(1, memory.process_id, 7, b"first"), None
    host.feed([first])
    assert host.accepted == [first]

    in_order: list[Event] = [first]
    for number, (snapshot, event) in enumerate(answers(memory, 64)):
        host.feed([snapshot, event])
        in_order.append(event)
        if number == 9:
            line = LogEvent(event.timestamp_ns + 1, memory.process_id, 7, b"second")
            host.feed([line])
            in_order.append(line)
            assert host.accepted == [first]

    assert host.accepted == in_order


# Verified ----------------------------------------------------------------------------------


def test_events_wait_for_the_verdict_and_then_go_on_as_they_are() -> None:
    """In their order, the first like any other; later ones need not even pass through here."""
    memory = Memory()
    host = Host(memory).learn()
    assert host.streams.is_needed

    seen = list(answers(memory, 63))
    host.feed(seen)
    assert not host.accepted
    assert host.streams.is_needed

    host.feed(last := list(answers(memory, 1)))

    assert host.accepted == [event for _, event in (*seen, *last)]
    assert not host.streams.is_needed
    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert host.counters.value("otel_qtap.link.events_held") == 64
    assert host.counters.value("otel_qtap.link.calibrations", verdict="verified") == 1
    following = next(answers(memory, 1))
    host.feed([following])
    assert host.accepted[-1] is following[1]


def test_while_some_wait_all_do() -> None:
    """A request and what it caused in another process must not change their order."""
    memory = Memory()
    host = Host(memory).learn()
    others = other_process().events
    in_order = []
    for number, (snapshot, event) in enumerate(answers(memory, 64)):
        host.feed([snapshot, event])
        in_order.append(event)
        if number < len(others):
            host.feed([others[number]])
            in_order.append(others[number])

    assert host.accepted == in_order


def test_events_without_a_mark_do_not_wait() -> None:
    """What HAProxy receives says nothing about a stream; until something waits, it goes on."""
    memory = Memory()
    host = Host(memory).learn()
    (_, event) = next(answers(memory, 1))
    received = event._replace(stream=NO_MARK)

    host.feed([received])

    assert host.accepted == [received]


def test_the_end_of_a_connection_waits_behind_its_bytes() -> None:
    """It comes out of an interrupt, which knows no process."""
    memory = Memory()
    host = Host(memory).learn()
    pair = next(answers(memory, 1))
    end = CloseEvent(1, memory.now_ns, 0, CloseStep.DESTROYED, 0)
    host.feed([pair, end])
    assert not host.accepted

    host.streams.close()

    assert [type(event) for event in host.accepted] == [DataEvent, CloseEvent]


def test_the_end_of_a_connection_keeps_its_mark() -> None:
    """It says for which client's request HAProxy has given up."""
    memory = Memory()
    host = Host(memory).learn().feed(answers(memory, 5))
    stream = memory.begin(1)
    end = memory.close(stream, 1)

    host.feed([end, *answers(memory, 60)])

    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert host.accepted[5] == end
    assert end.stream == memory.truth[end.timestamp_ns] != NO_MARK


# No verdict in time ------------------------------------------------------------------------


def test_after_a_second_what_is_plausible_counts() -> None:
    """Of a HAProxy with little traffic; verification goes on meanwhile."""
    memory = Memory()
    memory.tick_ns = SECOND_NS // 10
    host = Host(memory).learn()

    seen = list(answers(memory, 40))
    host.feed(seen)

    assert host.accepted == [event for _, event in seen]
    assert host.verdicts == []
    assert host.streams.is_needed
    host.feed(answers(memory, 24))
    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert host.wrong() == []
    assert NO_MARK not in host.marks


def test_a_second_passes_without_traffic_too() -> None:
    """By the clock of the agent."""
    memory = Memory()
    host = Host(memory).learn().feed(seen := list(answers(memory, 2)))

    host.streams.tick(memory.now_ns + SECOND_NS // 2)
    assert not host.accepted
    host.streams.tick(memory.now_ns + 2 * SECOND_NS)

    assert host.accepted == [event for _, event in seen]


def test_what_is_not_plausible_by_then_loses_its_mark() -> None:
    """Marks without a snapshot say nothing about themselves; later ones wait again."""
    memory = Memory()
    host = Host(memory).learn().feed([event for _, event in answers(memory, 3)])
    host.streams.tick(memory.now_ns + 2 * SECOND_NS)

    assert host.marks == [NO_MARK] * 3
    host.feed(answers(memory, 64))
    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert NO_MARK not in host.marks[3:]


def test_what_was_plausible_counts_until_something_contradicts() -> None:
    """One request tells no number from a constant; the second one does, and nothing is kept."""
    memory = Memory(DEFAULT_OFFSETS._replace(serial=4))
    memory.believe(DEFAULT_OFFSETS)
    memory.tick_ns = 2 * SECOND_NS
    host = Host(memory).learn().feed(answers(memory, 1))
    host.streams.tick(memory.now_ns + memory.tick_ns)
    assert NO_MARK not in host.marks

    first_ns = memory.now_ns
    host.feed(answers(memory, 5))
    host.streams.tick(memory.now_ns + memory.tick_ns)

    assert host.verdicts == []
    assert host.marks[1:] == [NO_MARK] * 5
    assert host.distrusted == [(PID, first_ns + memory.tick_ns)]
    memory.tick_ns = 1000
    host.feed(answers(memory, 2 * 64))
    assert [verdict for _, verdict, _ in host.verdicts] == [Verdict.CHANGED, Verdict.VERIFIED]
    assert host.marks[-1] == memory.truth[memory.now_ns]


def test_health_checks_alone_wait_only_once() -> None:
    """They never lead to a verdict, and nothing of them can be linked."""
    memory = Memory()
    host = Host(memory).learn().feed(memory.send(None) for _ in range(5))
    assert not host.accepted
    host.streams.tick(memory.now_ns + 2 * SECOND_NS)
    assert len(host.accepted) == 5

    host.feed(memory.send(None) for _ in range(5))

    assert len(host.accepted) == 10
    assert set(host.marks) == {NO_MARK}
    host.feed(answers(memory, 64))
    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert host.wrong() == []


def test_more_events_than_there_is_room_for_are_let_go(monkeypatch) -> None:
    """The decision comes early then; what is plausible counts."""
    monkeypatch.setattr(streams, "_WAITING_EVENTS", 10)
    memory = Memory()
    host = Host(memory).learn()

    host.feed(islice(answers(memory, 20), 9))
    assert not host.accepted
    host.feed(answers(memory, 1))

    assert len(host.accepted) == 10
    assert NO_MARK not in host.marks


def test_stopping_lets_everything_go() -> None:
    """A recording is at its end, or the agent stops."""
    memory = Memory()
    host = Host(memory).learn().feed(seen := list(answers(memory, 5)))

    host.streams.close()

    assert host.accepted == [event for _, event in seen]


# Changed -----------------------------------------------------------------------------------

_MOVED = [
    pytest.param(Offsets(40, 8, 12), id="current"),
    pytest.param(Offsets(32, 24, 12), id="process"),
    pytest.param(Offsets(32, 8, 20), id="serial"),
    pytest.param(Offsets(64, 16, 4), id="all"),
]


@pytest.mark.parametrize("ring", [0, 1, 50, 300])
@pytest.mark.parametrize("truth", _MOVED)
def test_marks_by_wrong_offsets_are_put_right(truth, ring) -> None:
    """From snapshots; those that waited as well as those that were in the ring by then."""
    memory = Memory(truth)
    host = Host(memory, ring=ring).learn()

    host.feed(traffic(memory, 600)).empty()

    assert host.verdicts[-1] == (1, Verdict.VERIFIED, "")
    assert Verdict.CHANGED in {verdict for _, verdict, _ in host.verdicts}
    assert host.wrong() == []
    assert host.marks.count(NO_MARK) == 0
    right = len(host.marks) - host.marks.count(UNREADABLE)
    assert right > len(host.marks) - ring - 70
    assert not _is_needed_later(host, memory)


def _is_needed_later(host: Host, memory: Memory) -> bool:
    """Whether data still has to pass through when two seconds have gone by."""
    memory.now_ns += 2 * SECOND_NS
    host.feed(answers(memory, 1)).empty()
    host.streams.tick(memory.now_ns)
    return host.streams.is_needed


def test_a_mark_without_a_snapshot_cannot_be_put_right() -> None:
    """It says so: this is not the same as a mark of no stream."""
    memory = Memory(Offsets(32, 8, 20))
    host = Host(memory).learn()
    blind = [event for _, event in answers(memory, 3)]

    host.feed(blind).feed(traffic(memory, 300))

    assert host.verdicts[-1][1] is Verdict.VERIFIED
    assert host.marks[:3] == [UNREADABLE] * 3
    assert host.wrong() == []


def test_a_connection_opened_by_wrong_offsets_is_not_believed_later() -> None:
    """It is told when its first bytes are sent; its mark is older than they are."""
    memory = Memory(Offsets(32, 8, 20))
    host = Host(memory).learn()
    stream = memory.begin(7)
    opened = memory.connect(stream, 70)
    host.feed(traffic(memory, 300))
    assert host.verdicts[-1][1] is Verdict.VERIFIED

    host.feed([opened._replace(timestamp_ns=memory.now_ns)])
    assert host.marks[-1] == UNREADABLE
    later = memory.connect(stream, 71)
    host.feed([later])
    assert host.marks[-1] == memory.truth[later.connect_started_ns]


def test_a_connection_opened_by_wrong_offsets_is_put_right_by_what_was_seen_then() -> None:
    """The first request over it counts, too."""
    memory = Memory(Offsets(32, 8, 20))
    host = Host(memory).learn()
    stream = memory.begin(7)
    opened = memory.connect(stream, 70)
    memory.now_ns -= memory.tick_ns
    connecting, _ = memory.send(stream, connection_id=70)
    assert opened.connecting != memory.truth[opened.connect_started_ns]

    host.feed([connecting._replace(is_connecting=True)])
    host.feed(traffic(memory, 300))
    assert host.verdicts[-1][1] is Verdict.VERIFIED
    host.feed([opened._replace(timestamp_ns=memory.now_ns)])

    assert host.marks[-1] == memory.truth[opened.connect_started_ns]


# Refuted -----------------------------------------------------------------------------------


def _refuted(ring: int = 0) -> tuple[Host, Memory]:
    memory = Memory(serials=False)
    host = Host(memory, ring=ring).learn()
    host.feed(traffic(memory, 50))
    return host, memory


@pytest.mark.parametrize("ring", [0, 40])
def test_what_cannot_be_verified_loses_its_marks(ring) -> None:
    """For good: also what was in the ring, and what comes before the kernel side has stopped."""
    host, memory = _refuted(ring)
    host.feed(traffic(memory, 50)).empty()

    ((_, verdict, reason),) = host.verdicts
    assert verdict is Verdict.REFUTED
    assert reason == "no field of a stream behaves like its number"
    assert set(host.marks) == {NO_MARK}
    assert host.counters.value("otel_qtap.link.calibrations", verdict="refuted") == 1


def test_the_end_of_a_connection_loses_its_mark_too() -> None:
    """Though nobody says of which process it is."""
    host, memory = _refuted()
    stream = memory.begin(1)
    host.feed([memory.send(stream, ANSWER, Role.SERVER), memory.close(stream, 1)])

    assert type(host.accepted[-1]) is CloseEvent
    assert host.marks[-1] == NO_MARK


@pytest.mark.parametrize("source", [StreamSource.PROBE, StreamSource.NOTHING])
def test_the_next_way_begins_where_the_first_one_ended(source) -> None:
    """Marks of the first way are still in the ring; nothing waits for ever because of them."""
    memory = Memory(serials=False)
    host = Host(memory, ring=40)

    def fall_back(layout: Layout, verdict: Verdict, _reason: str) -> None:
        assert verdict is Verdict.REFUTED
        memory.now_ns += SECOND_NS  # attaching takes a while
        memory.serials = True  # by the probes' own account
        host.streams.learn(PID, replace(layout, source=source, since_ns=memory.now_ns))

    host.streams.on_verdict = fall_back
    host.learn().feed(traffic(memory, 50))
    in_ring = len([event for event in host.ring if isinstance(event, DataEvent)])
    assert in_ring
    before = len(host.accepted)
    host.feed(traffic(memory, 100)).empty()

    since = max(each for each in memory.truth) - SECOND_NS
    for event in host.accepted:
        assert isinstance(event, DataEvent)
        if event.timestamp_ns < since:
            assert event.stream in (NO_MARK, UNREADABLE)
    assert host.wrong() == []
    assert len(host.accepted) > before + in_ring
    assert host.marks[-1] == list(memory.truth.values())[-1]
    assert not _is_needed_later(host, memory)


def test_probes_need_no_verification() -> None:
    """They say what the function was called with."""
    memory = Memory()
    memory.believed = replace(LAYOUT, source=StreamSource.PROBE)
    host = Host(memory).learn()
    assert not host.streams.is_needed

    host.feed(event for _, event in answers(memory, 3))

    assert len(host.accepted) == 3
    assert NO_MARK not in host.marks


# Looks at what is verified -------------------------------------------------------------------


def _verified(memory: Memory) -> Host:
    """A host on which verification is over, and snapshots are taken again."""
    host = Host(memory).learn().feed(traffic(memory, 200))
    assert host.verdicts[-1][1] is Verdict.VERIFIED
    assert not host.streams.is_needed
    host.accepted.clear()
    host.look_again()
    return host


def test_a_snapshot_that_agrees_changes_nothing() -> None:
    """The event that it was taken for passes through here; the next need not any more."""
    memory = Memory()
    host = _verified(memory)
    for snapshot, event in islice(traffic(memory, 100), 96):
        host.streams.consume(snapshot)
        assert host.streams.is_needed
        host.streams.consume(event)
        assert host.accepted[-1] is event
        assert not host.streams.is_needed

    assert len(host.accepted) == 96
    assert not host.doubts
    assert [verdict for _, verdict, _ in host.verdicts] == [Verdict.VERIFIED]


def test_a_snapshot_whose_event_was_lost_is_forgotten() -> None:
    """With the next event of the process, whatever it is."""
    memory = Memory()
    host = _verified(memory)
    (snapshot, _), (_, event) = islice(traffic(memory, 2), 2)
    host.feed([snapshot, event])
    host.streams.tick(memory.now_ns)

    assert host.accepted == [event]
    assert not host.streams.is_needed
    assert not host.doubts


def test_few_snapshots_in_a_long_time_are_no_contradiction() -> None:
    """Each look begins anew: a number that has wrapped since the last does not matter."""
    memory = Memory()
    host = _verified(memory)
    host.feed(traffic(memory, 50))
    memory.now_ns += 60 * SECOND_NS
    memory.serial = 5

    host.feed(traffic(memory, 50))

    assert not host.doubts


@pytest.mark.parametrize("moved", _MOVED)
def test_what_has_moved_since_is_doubted_and_marks_nothing_any_more(moved) -> None:
    """Within one look; whoever is told has it verified anew, and no mark is wrong since."""
    memory = Memory()
    host = _verified(memory)
    memory.offsets = moved
    pairs = traffic(memory, 400)
    host.feed(islice(pairs, 96))

    ((process_id, check, seen_ns, why),) = host.doubts
    assert (process_id, check) == (PID, "snapshot")
    assert why in (
        "the running task is elsewhere", "the number of a stream is elsewhere",
        "the argument of process_stream does not point back to its task",
        "no field of a stream behaves like its number",
    )  # fmt: skip
    marked = [e for e in host.accepted if isinstance(e, DataEvent) and e.timestamp_ns >= seen_ns]
    assert marked
    assert {event.stream for event in marked} == {NO_MARK}
    host.accepted.clear()
    host.streams.learn(PID, replace(memory.believed, since_ns=memory.now_ns))
    assert host.distrusted == [(PID, memory.now_ns)]

    host.feed(pairs).empty()

    assert host.wrong() == []
    assert host.verdicts[-1][1] in (Verdict.VERIFIED, Verdict.REFUTED)


def test_what_is_verified_anew_links_again() -> None:
    """A false alarm costs nothing but the marks that were made before."""
    memory = Memory()
    host = _verified(memory)
    host.streams.learn(988, memory.believed)
    before = [event for _, event in islice(traffic(memory, 10), 10)]
    host.streams.learn(PID, replace(memory.believed, since_ns=memory.now_ns))
    host.feed(before)
    host.feed(traffic(memory, 300))

    assert sorted(host.distrusted) == [(PID, memory_ns := host.distrusted[0][1]), (988, memory_ns)]
    assert KNOWN not in {event.stream.state for event in host.accepted[:10]}
    assert host.verdicts[-1][1] is Verdict.VERIFIED
    assert host.wrong() == []
    assert host.marks[-1] == list(memory.truth.values())[-1]
    assert not _is_needed_later(host, memory)


def test_what_probes_say_is_not_compared() -> None:
    """The offsets that snapshots are read by were refuted."""
    memory = Memory(serials=False)
    memory.believed = replace(LAYOUT, source=StreamSource.PROBE)
    host = Host(memory).learn().feed(seen := list(traffic(memory, 96)))

    assert len(host.accepted) == len(seen)
    assert not host.doubts


# Processes ---------------------------------------------------------------------------------


def _event(pid: int, step: ProcessStep, parent: int = 0) -> ProcessEvent:
    return ProcessEvent(1, pid, step, parent, "")


def test_a_forked_process_has_the_layout_of_its_parent() -> None:
    """The worker serves before anybody had a look at it."""
    memory = Memory()
    host = Host(memory).learn().feed([_event(988, ProcessStep.FORKED, PID)])
    memory.process_id = 988

    host.feed(answers(memory, 10))
    assert len(host.accepted) == 1  # the news of the fork
    host.feed(answers(memory, 54))

    assert host.verdicts == [(1, Verdict.VERIFIED, "")]


def test_a_fork_of_another_process_means_nothing() -> None:
    """Even if the parent was a HAProxy once."""
    host = Host(Memory()).learn()
    host.feed([_event(PID, ProcessStep.EXITED), _event(988, ProcessStep.FORKED, PID)])
    memory = Memory()
    memory.process_id = 988

    host.feed(seen := list(answers(memory, 3)))

    assert host.accepted[2:] == [event for _, event in seen]


@pytest.mark.parametrize("step", [ProcessStep.EXECUTED, ProcessStep.EXITED])
def test_a_process_that_is_no_haproxy_any_more_is_let_go(step) -> None:
    """What waited for it is decided by what was seen of it; what it does now is not held."""
    memory = Memory()
    host = Host(memory).learn().feed(seen := list(answers(memory, 3)))

    host.feed([_event(PID, step)])

    assert host.accepted[:3] == [event for _, event in seen]
    assert not host.streams.is_needed
    host.feed(seen)
    assert host.accepted[-1] == seen[-1][1]


def test_one_of_several_processes_that_ends_changes_nothing_for_the_others() -> None:
    """They share what is known."""
    memory = Memory()
    host = Host(memory).learn()
    host.streams.learn(988, LAYOUT)
    host.feed(answers(memory, 60))
    host.feed([_event(988, ProcessStep.EXITED)])
    assert host.accepted == [_event(988, ProcessStep.EXITED)]

    host.feed(answers(memory, 4))

    assert host.verdicts == [(1, Verdict.VERIFIED, "")]


def test_each_image_gets_a_verdict_of_its_own() -> None:
    """Two versions side by side: what is wrong with one is not the fault of the other."""
    good, moved, bad = Memory(seed=1), Memory(Offsets(40, 8, 12), seed=2), Memory(serials=False)
    for number, memory in enumerate((good, moved, bad)):
        memory.process_id += number
        memory.now_ns += 100 * number
        memory.tick_ns = 1000
        memory.believed = replace(LAYOUT, number=1 + number)
    host = Host(good, moved, bad).learn()

    for triple in zip(*(traffic(m, 300) for m in host.memories), strict=False):
        host.feed(triple)

    verdicts = {number: verdict for number, verdict, _ in host.verdicts}
    assert verdicts == {1: Verdict.VERIFIED, 2: Verdict.VERIFIED, 3: Verdict.REFUTED}
    assert host.wrong() == []
    of_bad = [e for e in host.accepted if isinstance(e, DataEvent) and e.process_id == PID + 2]
    assert {event.stream for event in of_bad} == {NO_MARK}
    of_good = [e for e in host.accepted if isinstance(e, DataEvent) and e.process_id == PID]
    assert NO_MARK not in {event.stream for event in of_good}


def test_learning_the_same_again_does_not_disturb() -> None:
    """Another process of the image was found."""
    memory = Memory()
    host = Host(memory).learn().feed(answers(memory, 40))
    host.streams.learn(988, memory.believed)
    host.learn()

    host.feed(answers(memory, 24))

    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert NO_MARK not in host.marks


def test_another_layout_under_the_same_number_begins_anew() -> None:
    """What waited for the old one will never be verified."""
    memory = Memory()
    host = Host(memory).learn().feed(answers(memory, 10))
    memory.believed = replace(LAYOUT, contexts_size=LAYOUT.contexts_size // 2)
    host.learn()
    assert host.marks == [NO_MARK] * 10

    host.feed(answers(memory, 64))

    assert host.verdicts == [(1, Verdict.VERIFIED, "")]
    assert NO_MARK not in host.marks[10:]


# Properties --------------------------------------------------------------------------------


def _everything(memory: Memory, requests: int, threads: int) -> Iterator[Seen | Event]:
    """Traffic, with connections that open and close, and events of another process."""
    opened: list[OpenEvent] = []
    others = iter(other_process().events)
    chance = memory.chance
    waiting: Stream | None = None
    for number, (snapshot, event) in enumerate(
        traffic(memory, requests, connections=4, threads=threads)
    ):
        has_snapshot = chance.random() < 0.8
        yield (snapshot, event) if has_snapshot else event
        if chance.random() < 0.1:
            waiting = waiting or memory.begin(90)
            opened.append(memory.connect(chance.choice([None, waiting]), 1000 + number))
        if opened and chance.random() < 0.1:
            yield opened.pop()._replace(timestamp_ns=memory.now_ns)
        if chance.random() < 0.05:
            waiting = waiting or memory.begin(90)
            yield memory.close(waiting, event.connection_id)
        if chance.random() < 0.05 and (other := next(others, None)):
            yield other


_TRUTHS = st.builds(
    Offsets, st.sampled_from([32, 40, 0]), st.sampled_from([8, 16]), st.sampled_from([12, 4, 60])
)
_GUESSES = st.builds(
    Offsets, st.sampled_from([32, 48]), st.sampled_from([8, 24]), st.sampled_from([12, 20])
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    truth=_TRUTHS,
    guess=_GUESSES,
    has_serials=st.integers(0, 4).map(bool),
    threads=st.integers(1, 3),
    ring=st.sampled_from([0, 3, 30, 200]),
    is_slow=st.booleans(),
    loss=st.sampled_from([0, 0.05]),
    seed=st.integers(0, 1000),
)
def test_no_mark_is_ever_wrong(
    truth, guess, has_serials, threads, ring, is_slow, loss, seed
) -> None:
    """
    Whatever was guessed, however far the agent is behind, and whatever it loses.

    Where so little goes on that no verdict comes in time, the place of the number may have to
    be believed. All that was handed over comes out once, in its order.
    """
    memory = Memory(truth, serials=has_serials, threads=threads, seed=seed)
    memory.tick_ns = SECOND_NS // 50 if is_slow else 1000
    memory.believe(guess)
    host = Host(memory, ring=ring).learn()
    expected = []
    for each in _everything(memory, 250, threads):
        records = each if _is_pair(each) else (each,)
        kept = [record for record in records if memory.chance.random() >= loss]
        expected += [_identity(e) for e in kept if not isinstance(e, SnapshotEvent)]
        host.feed(kept)
        if is_slow and memory.chance.random() < 0.02:
            host.streams.tick(memory.now_ns)
    host.empty()

    assert host.wrong(but_for_the_number=is_slow) == []
    if has_serials and not loss and not is_slow:
        assert host.verdicts[-1][1] is Verdict.VERIFIED
    host.streams.close()
    assert [_identity(event) for event in host.accepted] == expected


def _identity(event: Event) -> tuple[object, ...]:
    return (type(event), event.timestamp_ns, getattr(event, "connection_id", 0))
