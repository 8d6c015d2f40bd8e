"""Where HAProxy keeps things is found and verified, or refused; it is never mistaken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from typing import NamedTuple

import pytest
from haproxy.memory import ANSWER, LAYOUT, Field, Memory, Stream, traffic
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from otel_qtap.events import DataEvent, Role, SnapshotEvent
from otel_qtap.haproxy.calibration import Calibration, Verdict
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Offsets

REQUESTS = 250
"""Enough for a verdict, with some to spare."""


def calibrate(
    memory: Memory, seen: Iterable[tuple[SnapshotEvent, DataEvent]]
) -> tuple[Calibration, list[Verdict]]:
    """
    Return the last calibration and the verdicts on the way to it.

    As ``StreamMarks`` and ``HaproxyWatch`` do it together: other offsets come into force at
    the kernel side, and what was seen before counts no more.
    """
    calibration, verdicts = Calibration(memory.believed), []
    for snapshot, event in seen:
        calibration.observe(snapshot, event)
        if calibration.verdict is Verdict.OPEN:
            continue
        verdicts.append(calibration.verdict)
        if calibration.verdict is not Verdict.CHANGED:
            break
        memory.believe(calibration.found)
        calibration = Calibration(memory.believed)
    return calibration, verdicts


def hits(memory: Memory, amount: int, *, connections: int = 3) -> Iterator:
    """Yield so many answers, each in its stream."""
    for number in range(amount):
        stream = memory.begin(1 + number % connections)
        yield memory.send(stream, ANSWER, Role.SERVER)
        memory.end(stream)


# Found -------------------------------------------------------------------------------------

_TRUTHS = [
    pytest.param(DEFAULT_OFFSETS, id="as-in-all-releases-so-far"),
    pytest.param(Offsets(40, 8, 12), id="other-place-of-the-task"),
    pytest.param(Offsets(0, 8, 12), id="task-comes-first"),
    pytest.param(Offsets(120, 8, 12), id="task-is-the-last-word"),
    pytest.param(Offsets(32, 16, 12), id="other-place-of-the-function"),
    pytest.param(Offsets(32, 0, 12), id="function-comes-first"),
    pytest.param(Offsets(32, 48, 12), id="function-is-the-last-that-fits"),
    pytest.param(Offsets(32, 8, 4), id="other-place-of-the-number"),
    pytest.param(Offsets(32, 8, 0), id="number-comes-first"),
    pytest.param(Offsets(32, 8, 60), id="number-is-the-last-looked-at"),
    pytest.param(Offsets(64, 24, 20), id="everything-moved"),
]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("truth", _TRUTHS)
def test_offsets_are_found_wherever_they_are(truth, threads) -> None:
    """Verified only once they are the true ones."""
    memory = Memory(truth, threads=threads)

    calibration, verdicts = calibrate(memory, traffic(memory, REQUESTS, threads=threads))

    assert verdicts[-1] is Verdict.VERIFIED
    assert calibration.found == calibration.offsets == truth
    assert (Verdict.CHANGED in verdicts) is (truth != DEFAULT_OFFSETS)


_WRONG_GUESSES = sorted(
    {DEFAULT_OFFSETS._replace(current=offset) for offset in range(0, 128, 8)}
    | {DEFAULT_OFFSETS._replace(process=offset) for offset in range(0, 56, 8)}
    | {DEFAULT_OFFSETS._replace(serial=offset) for offset in range(0, 64, 4)} - {DEFAULT_OFFSETS}
)


@pytest.mark.parametrize("guess", _WRONG_GUESSES, ids=lambda g: "-".join(map(str, g)))
def test_a_wrong_guess_is_put_right(guess) -> None:
    """Whichever of the offsets it is, and by how little it is wrong."""
    memory = Memory(DEFAULT_OFFSETS)
    memory.believe(guess)

    calibration, verdicts = calibrate(memory, traffic(memory, REQUESTS))

    assert verdicts[-1] is Verdict.VERIFIED
    assert Verdict.CHANGED in verdicts or guess == DEFAULT_OFFSETS
    assert calibration.offsets == DEFAULT_OFFSETS


def test_a_verdict_needs_many_snapshots() -> None:
    """Sixty-four in which a stream was being processed; of others any number."""
    memory = Memory()
    calibration = Calibration(memory.believed)
    for pair in islice(hits(memory, 64), 63):
        calibration.observe(*pair)
        calibration.observe(*memory.send(None))
        assert calibration.verdict is Verdict.OPEN

    for pair in hits(memory, 1):
        calibration.observe(*pair)

    assert calibration.verdict is Verdict.VERIFIED


def test_what_comes_after_a_verdict_does_not_change_it() -> None:
    """Others look at the offsets of another layout."""
    memory = Memory(Offsets(40, 8, 12))
    calibration = Calibration(memory.believed)
    for pair in hits(memory, 20):
        calibration.observe(*pair)

    assert calibration.verdict is Verdict.CHANGED
    assert calibration.found == Offsets(40, 8, 12)
    calibration.observe(*_outside(Memory().send(None)))
    assert calibration.verdict is Verdict.CHANGED


def test_processes_that_share_a_layout_count_on_their_own() -> None:
    """Two workers of one program: the same numbers and addresses mean other requests."""
    first, second = Memory(seed=1), Memory(seed=2)
    second.process_id += 1
    second.serial = first.serial

    def seen() -> Iterator:
        for number, (one, other) in enumerate(zip(hits(first, 60), hits(second, 60), strict=True)):
            yield one
            if number % 3:
                snapshot, event = other
                yield snapshot._replace(connection_id=snapshot.connection_id + 50), event

    _, verdicts = calibrate(first, seen())

    assert verdicts == [Verdict.VERIFIED]


# What is not the number -------------------------------------------------------------------


class Request(NamedTuple):
    """One request as its stream shows it: the other field, when it is answered and after."""

    connection_id: int
    value: int
    later: int
    beside: int = 0
    """The same of a request that is handled at the same time, on connection 9; 0: none is."""


_OTHERS = [
    pytest.param(
        lambda n: Request(1, 1000 + n, 1000 + n, beside=1000 + n), id="it-names-two-streams"
    ),
    pytest.param(lambda n: Request(1, 10 * n + 5, 10 * n + 4), id="it-falls"),
    pytest.param(lambda n: Request(1 + n % 2, n // 2, n // 2), id="it-stays-at-an-address"),
    pytest.param(
        lambda n: Request(1, 2 * n + 1, 2 * n + 1, beside=5000 + n) if n % 2
        else Request(9, 2 * n + 1, 2 * n + 1), id="it-falls-on-a-connection",
    ),
]  # fmt: skip


@pytest.mark.parametrize("other", _OTHERS)
def test_a_field_that_is_not_the_number_is_ruled_out(other) -> None:
    """By the one rule that it breaks; else it would be a second candidate for ever."""
    memory = Memory()

    def seen() -> Iterator:
        for number in range(100):
            request = other(number)
            requests = [(request.connection_id, request.value, request.later)]
            requests += [(9, request.beside, request.beside)] if request.beside else []
            streams = [memory.begin(connection) for connection, _, _ in requests]
            for stream, (_, value, later) in zip(streams, requests, strict=True):
                memory.put(stream.address + 40, value, 4)
                yield memory.send(stream, ANSWER, Role.SERVER)
                memory.put(stream.address + 40, later, 4)
                yield memory.send(stream, b"more", Role.SERVER)
            for stream in reversed(streams):
                memory.end(stream)

    _, verdicts = calibrate(memory, seen())

    assert verdicts == [Verdict.VERIFIED]


# Not enough --------------------------------------------------------------------------------


def test_without_a_stream_nothing_is_decided() -> None:
    """Health checks only: no traffic to be linked either."""
    memory = Memory()
    seen = [memory.send(None, in_task=bool(number % 2)) for number in range(500)]

    calibration, verdicts = calibrate(memory, seen)

    assert verdicts == []
    assert not calibration.is_plausible


def test_one_request_tells_no_number_from_a_constant() -> None:
    """A long download: nothing of its stream changes."""
    memory = Memory()
    stream = memory.begin(1)
    seen = [memory.send(stream, ANSWER, Role.SERVER)]
    seen += [memory.send(stream, b"more of it", Role.SERVER) for _ in range(300)]

    calibration, verdicts = calibrate(memory, seen)

    assert verdicts == []
    assert calibration.is_plausible


def test_one_request_verifies_nothing_even_if_one_field_is_left() -> None:
    """All others fell meanwhile; so may this one with the next request."""
    memory = Memory()
    stream = memory.begin(1)

    def seen() -> Iterator:
        yield memory.send(stream, ANSWER, Role.SERVER)
        for number in range(100):
            for offset in set(range(0, 64, 4)) - {memory.offsets.serial}:
                memory.put(stream.address + offset, 1000 - number, 4)
            yield memory.send(stream, b"more of it", Role.SERVER)

    _, verdicts = calibrate(memory, seen())

    assert verdicts == []


def test_two_places_at_first_are_not_a_reason_to_choose() -> None:
    """The next snapshot may tell which of them it is."""
    memory = Memory(Offsets(40, 8, 12))
    calibration = Calibration(memory.believed)
    for number in range(20):
        stream = memory.begin(1)
        memory.put_context(96, stream.task if number < 16 else 0)
        calibration.observe(*memory.send(stream, ANSWER, Role.SERVER))
        memory.end(stream)
        if number == 15:
            assert calibration.verdict is Verdict.OPEN

    assert calibration.verdict is Verdict.CHANGED
    assert calibration.found == Offsets(40, 8, 12)


def test_an_interim_answer_does_not_count_as_one() -> None:
    """The final one follows for the same request, with the same number."""
    memory = Memory()
    seen = []
    for _ in range(80):
        stream = memory.begin(1)
        answers = (b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103 Early Hints\r\n", ANSWER)
        seen += [memory.send(stream, answer, Role.SERVER) for answer in answers]
        memory.end(stream)

    _, verdicts = calibrate(memory, seen)

    assert verdicts == [Verdict.VERIFIED]


def test_what_comes_from_a_backend_is_no_answer_to_a_client() -> None:
    """Nothing that is received has a snapshot; a proxy may yet send such bytes to a server."""
    memory = Memory()
    stream = memory.begin(1)
    seen = list(repeat(memory.send(stream, ANSWER, Role.CLIENT), 100))

    _, verdicts = calibrate(memory, seen)

    assert verdicts == []


# Plausible ---------------------------------------------------------------------------------


def test_a_guess_is_plausible_from_the_first_hit_until_something_contradicts() -> None:
    """That is what a HAProxy with little traffic has to be judged by."""
    memory = Memory()
    calibration = Calibration(memory.believed)
    assert not calibration.is_plausible
    for pair in hits(memory, 1):
        calibration.observe(*pair)
    assert calibration.is_plausible

    memory.serials = False
    for pair in hits(memory, 3):
        calibration.observe(*pair)
    assert not calibration.is_plausible
    assert calibration.verdict is Verdict.OPEN
    for pair in hits(memory, 16):
        calibration.observe(*pair)
    assert calibration.verdict is Verdict.REFUTED


@pytest.mark.parametrize(
    "truth", [Offsets(40, 8, 12), Offsets(32, 16, 12)], ids=["current", "process"]
)
def test_a_wrong_place_of_the_task_is_never_plausible(truth) -> None:
    """There is no hit, or one that says where the task is instead."""
    memory = Memory(truth)
    calibration = Calibration(memory.believed)
    for pair in hits(memory, 10):
        calibration.observe(*pair)
        assert not calibration.is_plausible


def test_a_wrong_place_of_the_number_is_not_plausible_for_long() -> None:
    """The second answer on a connection, or at an address, has the same value there."""
    memory = Memory(DEFAULT_OFFSETS._replace(serial=20))
    calibration = Calibration(memory.believed)
    for pair in hits(memory, 2, connections=1):
        calibration.observe(*pair)

    assert not calibration.is_plausible


# Refused -----------------------------------------------------------------------------------


def _outside(seen: tuple[SnapshotEvent, DataEvent]) -> tuple[SnapshotEvent, DataEvent]:
    snapshot, event = seen
    return snapshot._replace(context_address=LAYOUT.contexts + LAYOUT.contexts_size), event


def test_a_context_outside_of_its_array_refuses_at_once() -> None:
    """The thread-local variable is somewhere else than the file says."""
    memory = Memory()

    calibration, verdicts = calibrate(memory, [_outside(next(hits(memory, 1)))])

    assert verdicts == [Verdict.REFUTED]
    assert "not where its thread-local storage says" in calibration.reason


def _unread_context(seen: tuple[SnapshotEvent, DataEvent]) -> tuple[SnapshotEvent, DataEvent]:
    snapshot, event = seen
    nothing = (0,) * len(snapshot.context)
    return snapshot._replace(
        context_address=0, context=nothing, targets=tuple(bytes(len(t)) for t in snapshot.targets),
        task=0, stream_address=0, stream=bytes(len(snapshot.stream)),
    ), event  # fmt: skip


def _unread_stream(seen: tuple[SnapshotEvent, DataEvent]) -> tuple[SnapshotEvent, DataEvent]:
    snapshot, event = seen
    return snapshot._replace(stream=bytes(len(snapshot.stream))), event


_FAILURES = [
    pytest.param(_unread_context, "the thread's context is not where", id="context"),
    pytest.param(_unread_stream, "the argument of process_stream does not point", id="stream"),
]


@pytest.mark.parametrize(("fail", "_reason"), _FAILURES)
def test_a_read_that_fails_now_and_then_contradicts_nothing(fail, _reason) -> None:
    """The kernel moves pages about; who reads meanwhile gets nothing."""
    memory = Memory()
    calibration = Calibration(memory.believed)
    for number, pair in enumerate(hits(memory, 100)):
        calibration.observe(*(fail(pair) if number % 10 == 0 else pair))
        assert not calibration.contradiction

    assert calibration.verdict is Verdict.VERIFIED


@pytest.mark.parametrize(("fail", "reason"), _FAILURES)
def test_reads_that_always_fail_are_a_reason_to_refuse(fail, reason) -> None:
    """Then the address is wrong; nothing is plausible before."""
    memory = Memory()
    calibration = Calibration(memory.believed)
    for pair in hits(memory, 64):
        assert not calibration.is_plausible
        calibration.observe(*fail(pair))

    assert calibration.verdict is Verdict.REFUTED
    assert calibration.reason.startswith(reason)


def test_without_a_number_there_is_nothing_to_tell_streams_by() -> None:
    """Their addresses are used again."""
    memory = Memory(serials=False)

    calibration, verdicts = calibrate(memory, traffic(memory, REQUESTS))

    assert verdicts == [Verdict.REFUTED]
    assert calibration.reason == "no field of a stream behaves like its number"


def test_a_stream_that_does_not_know_its_task_is_none() -> None:
    """What was taken for its address is something else."""
    memory = Memory()
    seen = list(hits(memory, 30))
    seen = [(s._replace(stream=s.stream.replace(s.task.to_bytes(8, "little"), bytes(8))), e)
            for s, e in seen]  # fmt: skip

    calibration, verdicts = calibrate(memory, seen)

    assert verdicts == [Verdict.REFUTED]
    assert "does not point back to its task" in calibration.reason


def _beside_others(memory: Memory, *places: int, idle: int = 0) -> Iterator:
    """Answers on a busy thread: at ``places`` are tasks that wait, but not each ``idle``th time."""
    waiting = [memory.begin(90 + number) for number in range(8)]
    for number in range(200):
        stream = memory.begin(number % 3)
        is_busy = not idle or number % idle
        for place in places:
            memory.put_context(place, memory.chance.choice(waiting).task if is_busy else 0)
        yield memory.send(stream, ANSWER, Role.SERVER)
        memory.end(stream)


@pytest.mark.parametrize("idle", [0, 30], ids=["always", "nearly-always"])
def test_tasks_that_wait_do_not_unsettle_the_offsets_in_force(idle) -> None:
    """On a thread that is never idle something waits in its queue all the time."""
    _, verdicts = calibrate(memory := Memory(), _beside_others(memory, 96, idle=idle))

    assert verdicts == [Verdict.VERIFIED]


def test_what_is_always_there_counts_more_than_what_nearly_always_is() -> None:
    """The guess was the queue; the running task is at the other place."""
    memory = Memory(Offsets(48, 8, 12))
    calibration, verdicts = calibrate(memory, _beside_others(memory, 32, idle=30))

    assert verdicts[0] is Verdict.CHANGED
    assert calibration.found[:2] == (48, 8)


def test_two_places_of_which_neither_was_expected_are_one_too_many() -> None:
    """Which of them holds the running one?"""
    memory = Memory(Offsets(48, 8, 12))
    calibration, verdicts = calibrate(memory, _beside_others(memory, 96))

    assert verdicts == [Verdict.REFUTED]
    assert calibration.reason == "the running task is at several places"


def test_a_place_that_is_not_always_the_same_is_none() -> None:
    """Half of the answers are explained by one place, half by another."""
    memory, other = Memory(), Memory(Offsets(48, 8, 12))
    seen = [pair for both in zip(hits(memory, 40), hits(other, 40), strict=True) for pair in both]

    calibration, verdicts = calibrate(memory, seen)

    assert verdicts == [Verdict.REFUTED]
    assert calibration.reason == "the running task is not at the same place each time"


def test_tasks_that_wait_for_their_turn_are_no_evidence() -> None:
    """While another task runs, the queue may begin with one whose function is process_stream."""
    memory = Memory()
    seen = []
    for number, pair in enumerate(hits(memory, 80)):
        seen.append(pair)
        if number % 2:
            waiting = memory.begin(9)
            memory.put_context(64, waiting.task)
            seen.append(memory.send(None))
            memory.put_context(64, 0)
            memory.end(waiting)

    _, verdicts = calibrate(memory, seen)

    assert verdicts == [Verdict.VERIFIED]


def test_a_second_number_is_a_reason_to_refuse_in_the_end() -> None:
    """Two fields that say the same: only more traffic could tell them apart, and there was much."""
    memory = Memory(fields={40: lambda _memory, stream: stream.serial + 7})

    calibration, verdicts = calibrate(memory, hits(memory, 1100))

    assert verdicts == [Verdict.REFUTED]
    assert calibration.reason == "the number of a stream is not to be told from other fields"


# Properties --------------------------------------------------------------------------------


def _clock(memory: Memory, _stream: Stream) -> int:
    """Return a time of the request, as coarse as HAProxy's."""
    return memory.now_ns // 40_000


def _pairs(_memory: Memory, stream: Stream) -> int:
    return stream.serial // 2


def _falling(_memory: Memory, stream: Stream) -> int:
    return 10**9 - stream.serial


def _flags(memory: Memory, _stream: Stream) -> int:
    return memory.chance.choice([0, 1, 0x80, 0x4001])


def _any(memory: Memory, _stream: Stream) -> int:
    return memory.chance.getrandbits(32)


def _pointer(_memory: Memory, stream: Stream) -> int:
    return stream.address + 0x340


def _per_connection(memory: Memory, stream: Stream) -> int:
    counts: dict[int, int] = memory.__dict__.setdefault("counts", {})
    counts[stream.connection_id] = counts.get(stream.connection_id, 0) + 1
    return counts[stream.connection_id]


_FIELDS: list[Field] = [_clock, _pairs, _falling, _flags, _any, _pointer, _per_connection]
_OFFSETS = st.builds(
    Offsets,
    st.integers(0, 15).map(lambda word: 8 * word),
    st.integers(0, 6).map(lambda word: 8 * word),
    st.integers(0, 15).map(lambda word: 4 * word),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    truth=_OFFSETS,
    guess=_OFFSETS,
    owner=st.integers(8, 127).map(lambda word: 8 * word),
    fields=st.dictionaries(
        st.integers(0, 15).map(lambda word: 4 * word), st.sampled_from(_FIELDS), max_size=15
    ),
    threads=st.integers(1, 4),
    has_serials=st.integers(0, 5).map(bool),
    stray=st.none() | st.integers(0, 15).map(lambda word: 8 * word),
    seed=st.integers(0, 1000),
)
def test_offsets_are_found_or_refused_but_never_mistaken(
    truth, guess, owner, fields, threads, has_serials, stray, seed
) -> None:
    """
    Whatever the structures look like and whatever was guessed.

    A stray pointer in the context leads to the task of a stream now and then, too.
    """
    assume(owner != truth.serial // 8 * 8)  # one place cannot hold both
    memory = Memory(
        truth, owner=owner, threads=threads, serials=has_serials, fields=fields, seed=seed
    )
    memory.believe(guess)

    def seen() -> Iterator:
        waiting = memory.begin(99)
        for pair in traffic(memory, 400, connections=4, threads=threads):
            if stray is not None and stray != truth.current and memory.chance.random() < 0.1:
                memory.put_context(stray, waiting.task)
            yield pair

    calibration, verdicts = calibrate(memory, seen())

    assert len(verdicts) < 20
    if Verdict.VERIFIED in verdicts:
        assert has_serials
        assert calibration.offsets == truth
    elif has_serials and stray is None and not _is_disguised(fields, truth):
        pytest.fail(f"{verdicts}: {calibration.reason}")


def _is_disguised(fields: dict[int, Field], truth: Offsets) -> bool:
    """Whether another field may pass for the number, so that it need not be found."""
    return any(field in (_clock, _any) for at, field in fields.items() if at != truth.serial)


def test_a_copy_of_the_layout_can_be_calibrated_again() -> None:
    """Nothing is kept between two calibrations."""
    memory = Memory()
    for _ in range(2):
        calibration, verdicts = calibrate(memory, traffic(memory, REQUESTS))
        assert verdicts == [Verdict.VERIFIED]
        assert calibration.offsets == replace(LAYOUT).offsets
