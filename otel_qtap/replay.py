"""A recording goes through the pipeline: no root, no kernel, the same output every time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from otel_qtap.config.model import Config
from otel_qtap.connection.model import Container, Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import LostEvent
from otel_qtap.haproxy import NameTables
from otel_qtap.pipeline import SETTLE_NS, TICK_NS, Pipeline, PipelineOptions
from otel_qtap.receiver.recording import (
    AddressName,
    RecordedLayout,
    RecordedNames,
    RecordedProcess,
    Recording,
    RecordingError,
)
from otel_qtap.receiver.wire import WireError, decode
from otel_qtap.transaction.model import Transaction

__all__ = ["RecordedFacts", "recorded_transactions", "replay"]

_REPLAY_SEED = bytes(8)
_REPLAY_FLUSH_BYTES = 1024 * 1024
_MAX_TICKS = 10_000  # between two events: forty minutes, or a time that is damaged


class RecordedFacts:
    """The facts that a recording holds; nothing of the replaying machine is asked."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[tuple[int, str], str] = {}
        self._tables: dict[int, NameTables] = {}

    def learn(self, item: RecordedProcess | AddressName | RecordedNames) -> None:
        """Take a fact out of the recording."""
        if isinstance(item, AddressName):
            self._names[item.process_id, item.address] = item.name
            return
        if isinstance(item, RecordedNames):
            self._tables[item.process_id] = item.tables
            return
        self._processes[item.process.pid] = item.process
        if item.container is not None:
            self._containers[item.container.id] = item.container

    def process(self, process_id: int) -> Process:
        """Return what the recording says of a process."""
        return self._processes.get(process_id) or Process(pid=process_id)

    def container(self, process: Process) -> Container | None:
        """Return the container that the recording says a process ran in."""
        return self._containers.get(process.container_id)

    def name_of(self, process_id: int, address: str) -> str:
        """Return the name that the recording has for an address."""
        return self._names.get((process_id, address), "")

    def tables_of(self, pid: int) -> NameTables | None:
        """Return the names that the recording has of a HAProxy process so far."""
        return self._tables.get(pid)


def replay(
    recording: Recording,
    config: Config,
    counters: CounterSet,
    stdout: BinaryIO,
    options: PipelineOptions,
    deadline_s: float = 30.0,
) -> bool:
    """
    Run a recording through the pipeline, without a kernel and without root.

    The same recording gives the same transactions, ids included. Returns whether
    everything was delivered. Raises ``RecordingError`` if the file is damaged, and
    ``DestinationError`` where something could never be delivered.
    """
    facts = RecordedFacts()
    pipeline = Pipeline(
        config, facts, counters, stdout,
        options=_as_recorded(options), epoch_offset_ns=recording.epoch_offset_ns, names=facts,
    )  # fmt: skip
    waiting_bytes = 0
    try:
        for size in _play(recording, pipeline, facts, counters):
            waiting_bytes += size
            if waiting_bytes > _REPLAY_FLUSH_BYTES:  # a file is faster than any destination
                waiting_bytes = 0
                pipeline.flush(deadline_s)
    except RecordingError:
        pipeline.close(deadline_s)  # what stands before the damage is told all the same
        raise
    return pipeline.close(deadline_s)


def recorded_transactions(recording: Recording) -> Iterator[Transaction]:
    """
    Yield the transactions of a recording, all of them, as they are before any plugin.

    Their bodies are left out. Raises ``RecordingError`` if the file is damaged.
    """
    facts, counters, found = RecordedFacts(), CounterSet(), _Collector()
    pipeline = Pipeline(
        Config(), facts, counters, io.BytesIO(),
        options=_as_recorded(PipelineOptions(observers=(found,))),
        epoch_offset_ns=recording.epoch_offset_ns, names=facts,
    )  # fmt: skip
    for _ in _play(recording, pipeline, facts, counters):
        yield from found.take()
    yield from found.take()
    pipeline.close(0)


class _Collector:
    """Keeps transactions until somebody takes them."""

    def __init__(self) -> None:
        self._found: list[Transaction] = []

    def consume(self, transaction: Transaction) -> None:
        """Keep ``transaction``."""
        self._found.append(transaction)

    def take(self) -> list[Transaction]:
        """Return what was found since the last call."""
        found, self._found = self._found, []
        return found


def _as_recorded(options: PipelineOptions) -> PipelineOptions:
    """Return ``options`` with ids that can be repeated, and nothing of this machine."""
    return replace(options, id_seed=_REPLAY_SEED, hostname="")


def _play(
    recording: Recording, pipeline: Pipeline, facts: RecordedFacts, counters: CounterSet
) -> Iterator[int]:
    """Give everything to ``pipeline``, to the end; yields the size of each event in bytes."""
    undecodable = counters.counter(
        "otel_qtap.receiver.undecodable", "{record}", "Records that could not be read"
    )
    last_ns = next_tick_ns = next_settle_ns = 0
    for item in recording:
        if isinstance(item, RecordedProcess | AddressName | RecordedNames):
            facts.learn(item)
        elif isinstance(item, RecordedLayout):
            pipeline.streams.learn(item.process_id, item.layout)
        elif isinstance(item, LostEvent):
            counters.counter(
                "otel_qtap.receiver.lost", "{event}",
                "Events the kernel side could not hand over whole", reason=item.reason,
            ).add(item.amount)  # fmt: skip
        else:
            try:
                event = decode(item)
            except WireError:
                undecodable.add()
                continue
            last_ns = event.timestamp_ns
            next_tick_ns = _tick(pipeline, next_tick_ns or last_ns, last_ns)
            if last_ns >= next_settle_ns:
                next_settle_ns = last_ns + SETTLE_NS
                pipeline.settle(last_ns)
            pipeline.accept_event(event)
            yield len(item)
    pipeline.stop_connections(last_ns)


def _tick(pipeline: Pipeline, due_ns: int, now_ns: int) -> int:
    """Do what was due up to ``now_ns``, by recorded time; returns when the next is due."""
    while due_ns <= now_ns:
        pipeline.tick(due_ns)
        due_ns += max(TICK_NS, (now_ns - due_ns) // _MAX_TICKS)
    return due_ns
