"""
Connection events: what became of each connection, while it lasts and when it ends.

A connection is reported half a second after it opened, then every ten seconds, and once
when it is over, so one that ends sooner has a single report. How much it moved is read
off the positions that the tracker keeps anyway: between its opening and its end a
connection costs nothing here.

Sans-I/O: time comes with the events and with ``tick``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from otel_qtap.connection.facts import Facts
from otel_qtap.connection.tracker import Connection, StreamReader
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.events import CloseEvent, CloseStep, DataEvent, Flow, Role
from otel_qtap.plugins.http_metrics import DURATION_BOUNDS_MS
from otel_qtap.stores.connection_event import ConnectionEvent, System
from otel_qtap.stores.qtap_fields import endpoint_of, protocol_of
from otel_qtap.stores.tags import normalised_tags, process_tags, tags_by_key
from otel_qtap.transaction.consumer import EventConsumer
from otel_qtap.transaction.direction import direction_of
from otel_qtap.transaction.model import Direction, Transaction

__all__ = ["ConnectionReporter"]

FIRST_REPORT_NS = 500_000_000
NEXT_REPORT_NS = 10_000_000_000


class ConnectionReporter:
    """Make Connection events of the connections that it is told to follow."""

    def __init__(
        self,
        *,
        consumers: Sequence[EventConsumer],
        facts: Facts,
        system: System,
        counters: CounterSet,
        epoch_offset_ns: Callable[[], int],
        tags: Iterable[str] = (),
    ) -> None:
        """
        ``epoch_offset_ns`` says what turns the kernel's time into that since the epoch.

        ``tags``: ``key:value``, for every event, beside those of its process.
        """
        self._consumers = tuple(consumers)
        self._facts = facts
        self._system = system
        self._epoch_offset_ns = epoch_offset_ns
        self._tags = normalised_tags(tags)
        self._metrics = _ConnectionMetrics(counters, lambda: len(self._reports))
        self._reports: dict[str, _Report] = {}
        self._due: list[tuple[int, str]] = []
        """A heap of when to report on whom; ids of connections that are over stay till then."""

    def report_to(self, consumers: Sequence[EventConsumer]) -> None:
        """Give all further reports to ``consumers``, also those on connections followed before."""
        self._consumers = tuple(consumers)

    def follow(
        self,
        connection: Connection,
        reader: StreamReader,
        connection_id: str,
        *,
        protocol: str = "http1",
    ) -> StreamReader:
        """
        Return what is to read ``connection`` in place of ``reader``, which it passes all to.

        ``protocol`` is what it speaks until a transaction tells otherwise: ``http1``,
        ``http2``, …, ``other``.
        """
        direction = direction_of(connection.role, connection.remote.address)
        report = _Report(self, connection, reader, connection_id, direction, protocol)
        self._reports[connection_id] = report
        heapq.heappush(self._due, (connection.opened_ns + FIRST_REPORT_NS, connection_id))
        self._metrics.opened(direction)
        return report

    def consume(self, transaction: Transaction) -> None:
        """Learn from a connection's first transaction what it speaks, and with whom."""
        report = self._reports.get(transaction.connection_id)
        if report is not None and not report.endpoint:
            report.protocol = protocol_of(transaction)
            report.endpoint = endpoint_of(transaction)

    def tick(self, now_ns: int) -> None:
        """Make the reports that are due at ``now_ns`` (kernel time, as in events)."""
        due = self._due
        while due and due[0][0] <= now_ns:
            _, connection_id = heapq.heappop(due)
            report = self._reports.get(connection_id)
            if report is not None:
                self._emit(report, now_ns)
                heapq.heappush(due, (now_ns + NEXT_REPORT_NS, connection_id))

    def finish(self, report: _Report, now_ns: int, *, is_closed: bool) -> None:
        """Make the last report; for the reader of the connection to call."""
        if self._reports.pop(report.connection_id, None) is not None:
            self._emit(report, now_ns, is_finalized=True, is_closed=is_closed)
            self._metrics.closed(report, now_ns)

    def _emit(
        self,
        report: _Report,
        now_ns: int,
        *,
        is_finalized: bool = False,
        is_closed: bool = False,
    ) -> None:
        if not self._consumers:
            return
        connection, offset = report.connection, self._epoch_offset_ns()
        process = self._facts.process(connection.process_id)
        container = self._facts.container(process)
        hostname, protocol = self._system.hostname, report.protocol
        tags = (*self._tags, *process_tags(process, container, hostname, protocol))
        event = ConnectionEvent(
            connection_id=report.connection_id,
            endpoint_id=report.endpoint or self._endpoint(connection),
            part=report.part,
            is_finalized=is_finalized,
            timestamp_ns=now_ns + offset,
            created_ns=(connection.connect_started_ns or connection.opened_ns) + offset,
            closed_ns=now_ns + offset if is_closed else 0,
            direction=report.direction,
            l7_protocol=protocol,
            local=connection.local,
            remote=connection.remote,
            process=process,
            container=container,
            bytes_sent=max(0, connection.expected[Flow.SEND]),
            bytes_received=max(0, connection.expected[Flow.RECEIVE]),
            system=self._system,
            tags=tags_by_key(tags),
        )
        report.part += 1
        for consumer in self._consumers:
            consumer.consume_event(event)

    def _endpoint(self, connection: Connection) -> str:
        """Return what stands in for the name while no request has named one."""
        if connection.role is Role.SERVER:
            return connection.local.address
        address = connection.remote.address
        return self._facts.name_of(connection.process_id, address) or address


class _TakeData(Protocol):
    def __call__(self, event: DataEvent) -> None: ...


class _TakeGap(Protocol):
    def __call__(self, flow: Flow, size: int, timestamp_ns: int) -> None: ...


class _Report:
    """
    A reader that passes everything to another one and notices the end.

    The methods that every piece of data goes through are those of the other reader
    itself, so nothing is added to their way.
    """

    __slots__ = (
        "_reader",
        "_reporter",
        "connection",
        "connection_id",
        "direction",
        "endpoint",
        "part",
        "protocol",
        "stream_data",
        "stream_gap",
    )

    def __init__(
        self,
        reporter: ConnectionReporter,
        connection: Connection,
        reader: StreamReader,
        connection_id: str,
        direction: Direction,
        protocol: str,
    ) -> None:
        self.stream_data: _TakeData = reader.stream_data
        self.stream_gap: _TakeGap = reader.stream_gap
        self.connection = connection
        self.connection_id = connection_id
        self.direction = direction
        self.endpoint = ""
        self.protocol = protocol
        self.part = 0
        self._reader = reader
        self._reporter = reporter

    def stream_step(self, event: CloseEvent) -> None:
        """Pass on a step on the way to the end."""
        self._reader.stream_step(event)
        if event.step is CloseStep.DESTROYED:
            self._reporter.finish(self, event.timestamp_ns, is_closed=True)

    def give_up(self, timestamp_ns: int) -> None:
        """Pass on that nothing more will come."""
        self._reader.give_up(timestamp_ns)
        self._reporter.finish(self, timestamp_ns, is_closed=False)


class _ConnectionMetrics:
    """
    Qtap's Prometheus metrics of connections.

    Without its labels for the remote address and port, of which there is no end.
    """

    def __init__(self, counters: CounterSet, active: Callable[[], int]) -> None:
        self._counters = counters
        counters.gauge("qtap.connection.active_total", "1", "Connections being followed.", active)
        self._opened = {d: self._counter("open", "Connections opened.", d) for d in Direction}
        self._closed = {d: self._counter("close", "Connections ended.", d) for d in Direction}
        self._sent = {d: self._counter("bytes_sent", "Bytes sent.", d) for d in Direction}
        self._received = {d: self._counter("bytes_recv", "Bytes received.", d) for d in Direction}
        self._durations = {
            direction: counters.histogram(
                "qtap.connection.duration_ms", "ms", "From opening to end.", DURATION_BOUNDS_MS,
                direction=direction.value,
            )
            for direction in Direction
        }  # fmt: skip

    def opened(self, direction: Direction) -> None:
        """Count a connection that opened."""
        self._opened[direction].add()

    def closed(self, report: _Report, now_ns: int) -> None:
        """Count a connection that is over."""
        direction, connection = report.direction, report.connection
        self._closed[direction].add()
        self._sent[direction].add(max(0, connection.expected[Flow.SEND]))
        self._received[direction].add(max(0, connection.expected[Flow.RECEIVE]))
        self._durations[direction].record(max(0, now_ns - connection.opened_ns) / 1e6)
        self._counters.counter(
            "qtap.connection.protocol", "1", "Connections ended, by what they spoke.",
            protocol=report.protocol,
        ).add()  # fmt: skip

    def _counter(self, name: str, text: str, direction: Direction) -> Counter:
        return self._counters.counter(
            f"qtap.connection.{name}", "1", text, direction=direction.value
        )
