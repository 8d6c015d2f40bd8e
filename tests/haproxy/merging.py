"""
A recording and the log lines of the same time go through the joiner as in the agent.

The kernel would hand over both in the order of time; here they are merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from otel_qtap.connection.model import Container, Process
from otel_qtap.connection.tracker import ConnectionTracker
from otel_qtap.counters import CounterSet
from otel_qtap.haproxy import AccessLogLine, LogJoiner, ServedRequest, served_request
from otel_qtap.receiver.recording import RecordedProcess, Recording
from otel_qtap.receiver.wire import decode
from otel_qtap.transaction.assembler import Assembler, AssemblerLimits
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Transaction

__all__ = ["Joined", "Played", "Written", "play"]


class Written(NamedTuple):
    """What a process wrote to its log in one call."""

    time_ns: int
    process_id: int
    data: bytes
    is_forwarded: bool = False


class Joined(NamedTuple):
    """What came out of the joiner."""

    transaction: Transaction
    line: AccessLogLine | None


@dataclass
class Played:
    """Everything that came out, and the counters."""

    joined: list[Joined] = field(default_factory=list)
    counters: CounterSet = field(default_factory=CounterSet)

    def lines(self, result: str) -> int:
        """Return how many lines ended as ``result``."""
        return self.counters.value("otel_qtap.haproxy.log.lines", result=result)

    def transactions(self, result: str) -> int:
        """Return how many transactions of listeners that log ended as ``result``."""
        return self.counters.value("otel_qtap.haproxy.log.transactions", result=result)

    def consume(self, joined: Joined, /) -> None:
        """Note what the joiner lets go of."""
        self.joined.append(joined)


def describe(joined: Joined) -> ServedRequest | None:
    """Return what identifies a transaction that was served."""
    return served_request(joined.transaction)


def attach(joined: Joined, line: AccessLogLine) -> Joined:
    """Put the line to the transaction."""
    return joined._replace(line=line)


class _Facts:
    """What a recording says of processes."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}

    def learn(self, item: RecordedProcess) -> None:
        self._processes[item.process.pid] = item.process

    def process(self, process_id: int) -> Process:
        return self._processes.get(process_id) or Process(pid=process_id)

    def container(self, _: Process) -> Container | None:
        return None

    def name_of(self, _: int, __: str) -> str:
        return ""


class _Joiners:
    """A joiner for each process, so that each has counters of its own."""

    def __init__(self) -> None:
        self.played: dict[int, Played] = {}
        self._joiners: dict[int, LogJoiner[Joined]] = {}

    def of(self, process_id: int) -> LogJoiner[Joined]:
        joiner = self._joiners.get(process_id)
        if joiner is None:
            played = self.played[process_id] = Played()
            joiner = self._joiners[process_id] = LogJoiner(
                played, describe=describe, attach=attach, counters=played.counters
            )
        return joiner

    def consume(self, transaction: Transaction) -> None:
        self.of(transaction.process.pid).accept(Joined(transaction, None))

    def accept_line(self, written: Written) -> None:
        time_ns, process_id, data, is_forwarded = written
        self.of(process_id).accept_line(process_id, time_ns, data, is_forwarded=is_forwarded)

    def tick(self, now_ns: int) -> None:
        for joiner in self._joiners.values():
            joiner.tick(now_ns)

    def close(self) -> None:
        for joiner in self._joiners.values():
            joiner.close()


def play(recording: Recording, lines: Iterable[Written]) -> dict[int, Played]:
    """Merge a recording with what was logged; return what the joiner made of each process."""
    joiners = _Joiners()
    facts = _Facts()
    assembler = Assembler(
        joiners, facts, CounterSet(),
        limits=AssemblerLimits(body_bytes=0), ids=IdGenerator(bytes(8)),
        epoch_offset_ns=recording.epoch_offset_ns,
    )  # fmt: skip
    tracker = ConnectionTracker(assembler.open, CounterSet())
    waiting = sorted(lines, reverse=True)
    now_ns = 0
    for item in recording:
        if not isinstance(item, bytes):
            if isinstance(item, RecordedProcess):
                facts.learn(item)
            continue
        event = decode(item)
        now_ns = max(now_ns, event.timestamp_ns + recording.epoch_offset_ns)
        while waiting and waiting[-1].time_ns <= now_ns:
            joiners.accept_line(waiting.pop())
        tracker.consume(event)
        joiners.tick(now_ns)
    for written in reversed(waiting):
        joiners.accept_line(written)
    tracker.close(now_ns - recording.epoch_offset_ns)
    joiners.close()
    return joiners.played
