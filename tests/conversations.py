"""
Events as the kernel side would send them, from a script of what was sent and received.

A ``Script`` is one connection. It keeps the account that ``bpf/data.h`` keeps: offsets by
flow, and ``turned`` on the first piece of a call after bytes went the other way. What is
scripted as unseen passes without an event, as when the ring is full. Scripts that share a
``Timeline`` are connections of one process, on one clock.

What is sent, and what is closed, can carry the mark of the HAProxy stream being processed;
``known`` makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from socket import AF_INET, AF_INET6, inet_pton
from struct import pack
from typing import Any

from otel_qtap.connection.model import Container, Process
from otel_qtap.connection.tracker import ConnectionTracker
from otel_qtap.counters import CounterSet
from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    Flow,
    LogEvent,
    OpenEvent,
    ProcessEvent,
    Role,
    SnapshotEvent,
    StreamMark,
    StreamState,
)
from otel_qtap.transaction.assembler import Assembler, AssemblerLimits
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Ending, Transaction

EPOCH_OFFSET_NS = 1_788_000_000_000_000_000
TICK_NS = 1000
"""How much later than the one before each call of a script is."""

IN_NO_TASK = StreamMark(StreamState.NONE, 0, 0)
IN_OTHER_TASK = StreamMark(StreamState.OTHER, 0, 0)
UNREADABLE = StreamMark(StreamState.UNREADABLE, 0, 0)


def known(serial: int, address: int = 0x7F00, task: int = 0x9900) -> StreamMark:
    """Return the mark of a stream."""
    return StreamMark(StreamState.KNOWN, address, serial, task)


def ending(task: int = 0x9900) -> StreamMark:
    """Return the mark of a stream that is being freed: only its task is known by then."""
    return StreamMark(StreamState.ENDING, 0, 0, task)


@dataclass
class Timeline:
    """The clock of several scripts, and their events in the order in which they happened."""

    now_ns: int = 1_000_000
    events: list[Event] = field(default_factory=list)

    def open(self, role: Role, connection_id: int, **changes: Any) -> Script:
        """Begin a connection; see ``Script``."""
        self.now_ns += TICK_NS
        return Script(role, connection_id=connection_id, timeline=self, **changes)

    def take(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self.events = self.events, []
        return events


class Script:
    """One connection: ``ask`` is what the client sends, ``answer`` what the server sends."""

    def __init__(
        self,
        role: Role = Role.SERVER,
        *,
        connection_id: int = 77,
        joined_late: bool = False,
        offset: int = 0,
        timeline: Timeline | None = None,
        **changes: Any,
    ) -> None:
        self.role = role
        self.connection_id = connection_id
        self.thread_id = 988
        self._clock = timeline or Timeline()
        self._timeline = timeline
        self._offsets = {Flow.RECEIVE: offset, Flow.SEND: offset}
        self._last_flow: Flow | None = None
        opened = OpenEvent(
            connection_id=connection_id,
            timestamp_ns=self.now_ns,
            process_id=987,
            role=role,
            local_address="172.18.0.2",
            local_port=80 if role is Role.SERVER else 40404,
            remote_address="192.0.2.7" if role is Role.SERVER else "172.18.0.3",
            remote_port=51234 if role is Role.SERVER else 8001,
            connect_started_ns=0 if role is Role.SERVER else self.now_ns - 500,
            established_ns=self.now_ns - 200,
            joined_late=joined_late,
        )
        self.process_id = int(changes.get("process_id", opened.process_id))
        self.events: list[Event] = []
        self._happen(opened._replace(**changes))

    @property
    def now_ns(self) -> int:
        """Monotonic time of the latest event."""
        return self._clock.now_ns

    @now_ns.setter
    def now_ns(self, time_ns: int) -> None:
        self._clock.now_ns = time_ns

    def _happen(self, event: Event) -> None:
        self.events.append(event)
        if self._timeline is not None:
            self._timeline.events.append(event)

    def ask(
        self, data: bytes, mark: StreamMark = NO_MARK,
        *, seen: bool = True, cuts: Iterable[int] = (),
    ) -> int:  # fmt: skip
        """One call that moves bytes to the server; returns its time since the epoch."""
        flow = Flow.RECEIVE if self.role is Role.SERVER else Flow.SEND
        return self._move(flow, data, [seen], cuts, mark=mark)

    def answer(
        self, data: bytes, mark: StreamMark = NO_MARK,
        *, seen: bool = True, cuts: Iterable[int] = (),
    ) -> int:  # fmt: skip
        """One call that moves bytes to the client; returns its time since the epoch."""
        flow = Flow.SEND if self.role is Role.SERVER else Flow.RECEIVE
        return self._move(flow, data, [seen], cuts, mark=mark)

    def move(self, *, asks: bool, pieces: Sequence[tuple[bytes, bool]]) -> None:
        """One call, handed over in pieces, each seen or not."""
        cuts, at = [], 0
        for data, _ in pieces[:-1]:
            at += len(data)
            cuts.append(at)
        flow = Flow.RECEIVE if asks == (self.role is Role.SERVER) else Flow.SEND
        self._move(flow, b"".join(d for d, _ in pieces), [seen for _, seen in pieces], cuts)

    def answer_cut(self, data: bytes, size: int) -> int:
        """Answer ``size`` bytes, of which only ``data`` was copied."""
        flow = Flow.SEND if self.role is Role.SERVER else Flow.RECEIVE
        return self._move(flow, data, [True], (), beyond=size - len(data))

    def step(self, step: CloseStep, error: int = 0, mark: StreamMark = NO_MARK) -> int:
        """One step on the way to the end of the connection."""
        self.now_ns += TICK_NS
        passed = (self._offsets[Flow.RECEIVE], self._offsets[Flow.SEND])
        self._happen(CloseEvent(self.connection_id, self.now_ns, 0, step, error, mark, passed))
        return self.now_ns + EPOCH_OFFSET_NS

    def client_closes(self) -> int:
        """The client sends its FIN, the captured process reads it or sent it."""
        if self.role is Role.CLIENT:
            return self.step(CloseStep.LOCAL_CLOSED)
        self.step(CloseStep.REMOTE_CLOSED)
        return self.step(CloseStep.RECEIVED_END)

    def server_closes(self) -> int:
        """The server sends its FIN, the captured process reads it or sent it."""
        if self.role is Role.SERVER:
            return self.step(CloseStep.LOCAL_CLOSED)
        self.step(CloseStep.REMOTE_CLOSED)
        return self.step(CloseStep.RECEIVED_END)

    def destroyed(self) -> int:
        """The kernel frees the socket."""
        return self.step(CloseStep.DESTROYED)

    def _move(
        self, flow: Flow, data: bytes, seen: Sequence[bool], cuts: Iterable[int],
        *, mark: StreamMark = NO_MARK, beyond: int = 0,
    ) -> int:  # fmt: skip
        self.now_ns += TICK_NS
        turned = self._last_flow is not flow
        self._last_flow = flow
        places = [0, *cuts, len(data)]
        seen = [*seen, *[seen[-1]] * (len(places) - 1 - len(seen))]
        for (start, end), is_seen in zip(pairwise(places), seen, strict=True):
            if is_seen:
                self._happen(
                    DataEvent(
                        connection_id=self.connection_id,
                        timestamp_ns=self.now_ns,
                        process_id=self.process_id,
                        thread_id=self.thread_id,
                        flow=flow,
                        offset=self._offsets[flow] + start,
                        size=end - start + beyond,
                        turned=turned,
                        data=data[start:end],
                        stream=mark,
                    )
                )
            turned = False
        self._offsets[flow] += len(data) + beyond
        return self.now_ns + EPOCH_OFFSET_NS


class NoFacts:
    """Facts of a machine on which every process is HAProxy and no address has a name."""

    def process(self, process_id: int) -> Process:
        """Return HAProxy."""
        return Process(pid=process_id, executable="/usr/sbin/haproxy")

    def container(self, process: Process) -> Container | None:  # noqa: ARG002
        """No containers here."""
        return None

    def name_of(self, process_id: int, address: str) -> str:  # noqa: ARG002
        """Return no name."""
        return ""


@dataclass
class Capture:
    """A tracker and an assembler with nothing behind them."""

    limits: AssemblerLimits = field(default_factory=AssemblerLimits)
    capacity: int = 65536
    counters: CounterSet = field(default_factory=CounterSet)
    transactions: list[Transaction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.assembler = Assembler(
            self,
            NoFacts(),
            self.counters,
            limits=self.limits,
            ids=IdGenerator(bytes(8)),
            epoch_offset_ns=EPOCH_OFFSET_NS,
        )
        self.tracker = ConnectionTracker(
            self.assembler.open, self.counters, capacity=self.capacity,
            on_loss=self.assembler.linker.lose,
        )  # fmt: skip

    def consume(self, transaction: Transaction) -> None:
        """Keep a transaction that is over."""
        self.transactions.append(transaction)

    def play(self, script: Script | Timeline) -> list[Transaction]:
        """Take all events of a script; returns every transaction so far."""
        return self.take(script.events)

    def take(self, events: Iterable[Event]) -> list[Transaction]:
        """Take events; returns every transaction so far."""
        for event in events:
            self.tracker.consume(event)
        return self.transactions


def encode(event: Event) -> bytes:
    """Return the record of ``event`` as the kernel side writes it; ``bpf/events.h`` in Python."""
    return _ENCODERS[type(event)](event)


def _encode_open(event: OpenEvent) -> bytes:
    is_ipv6 = ":" in event.remote_address
    family = AF_INET6 if is_ipv6 else AF_INET
    return _header(1, event, role=event.role, flags=event.joined_late | is_ipv6 << 1) + pack(
        "<QQ16s16sH2sI",
        event.connect_started_ns,
        event.established_ns,
        inet_pton(family, event.local_address),
        inet_pton(family, event.remote_address),
        event.local_port,
        event.remote_port.to_bytes(2, "big"),
        event.namespace,
    ) + _mark(event.connecting)  # fmt: skip


def _encode_data(event: DataEvent) -> bytes:
    sizes = pack("<QIII4x", event.offset, event.size, len(event.data), event.thread_id)
    head = _header(2, event, detail=event.flow, flags=event.turned)
    return head + sizes + _mark(event.stream) + event.data


def _encode_close(event: CloseEvent) -> bytes:
    body = pack("<I4xQQ", event.error, *event.passed)
    return _header(3, event, detail=event.step) + body + _mark(event.stream)


def _encode_process(event: ProcessEvent) -> bytes:
    head = _header(4, event, detail=event.step)
    return head + pack("<I4x", event.parent_id) + event.executable.encode()


def _encode_snapshot(event: SnapshotEvent) -> bytes:
    return b"".join((
        _header(5, event, detail=2 if event.is_connecting else Flow.SEND, role=event.role),
        pack("<17Q", event.context_address, *event.context),
        *event.targets,
        pack("<QQ", event.task, event.stream_address),
        event.stream,
    ))  # fmt: skip


def _encode_log(event: LogEvent) -> bytes:
    return _header(6, event) + pack("<I4x", event.thread_id) + event.data


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    OpenEvent: _encode_open,
    DataEvent: _encode_data,
    CloseEvent: _encode_close,
    ProcessEvent: _encode_process,
    SnapshotEvent: _encode_snapshot,
    LogEvent: _encode_log,
}


def _mark(mark: StreamMark) -> bytes:
    return pack("<QQII", mark.address, mark.task, mark.serial, mark.state)


def _header(kind: int, event: Any, *, detail: int = 0, role: int = 0, flags: int = 0) -> bytes:
    return pack(
        "<BBBBIQQ", kind, detail, role, flags, event.process_id, event.timestamp_ns,
        getattr(event, "connection_id", 0),
    )  # fmt: skip


def play(script: Script, **limits: int) -> list[Transaction]:
    """Return the transactions that the events of ``script`` make."""
    return Capture(AssemblerLimits(**limits)).play(script)


def told(transactions: list[Transaction]) -> list[tuple[str, int | None, Ending]]:
    """Return what matters of transactions: target, status and ending."""
    return [(t.request.target, t.response and t.response.status, t.ending) for t in transactions]
