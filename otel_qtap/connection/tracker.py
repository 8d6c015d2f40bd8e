"""
Events become byte streams: one ``Connection`` for each TCP connection that is followed.

Kernel events name a connection by an id that is never used twice, so a descriptor, a
socket address or a process id that is used again cannot mix two connections. What is
checked here is order: every piece of a flow has a position, and a jump is a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from otel_qtap.connection.model import Peer
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    Flow,
    OpenEvent,
    Role,
)

__all__ = ["Connection", "ConnectionTracker", "StreamReader"]

_EVICTED_SHARE = 16  # one in so many connections goes when the table is full


class StreamReader(Protocol):
    """What reads the two streams of one connection, in the order of the kernel's events."""

    def stream_data(self, event: DataEvent) -> None:
        """Take the next bytes of ``event.flow``; they follow the ones before without a gap."""

    def stream_gap(self, flow: Flow, size: int, timestamp_ns: int) -> None:
        """``size`` bytes of ``flow`` passed unseen."""

    def stream_step(self, event: CloseEvent) -> None:
        """A step on the way to the end; ``CloseStep.DESTROYED`` is the last call of all."""

    def give_up(self, timestamp_ns: int) -> None:
        """The connection is still open, but nothing more of it will come."""


class Connection:
    """A TCP connection as one of its ends sees it."""

    __slots__ = (
        "connect_started_ns",
        "connecting",
        "established_ns",
        "expected",
        "id",
        "joined_late",
        "last_seen_ns",
        "local",
        "namespace",
        "opened_ns",
        "process_id",
        "reader",
        "remote",
        "role",
    )

    def __init__(self, event: OpenEvent) -> None:
        self.id = event.connection_id
        self.role = event.role
        self.process_id = event.process_id
        self.local = Peer(event.local_address, event.local_port)
        self.remote = Peer(event.remote_address, event.remote_port)
        self.opened_ns = event.timestamp_ns
        self.connect_started_ns = event.connect_started_ns
        self.established_ns = event.established_ns
        self.joined_late = event.joined_late
        self.namespace = event.namespace
        self.connecting = event.connecting
        self.last_seen_ns = event.timestamp_ns
        # Where the next piece of each flow should begin; -1 on a late-joined connection
        # until its first piece says where it is.
        start = -1 if event.joined_late else 0
        self.expected = [start, start]
        self.reader: StreamReader | None = None


class ConnectionTracker:
    """
    All connections that are open, at most ``capacity`` of them.

    ``open_reader`` makes the reader of a new connection, or returns ``None`` to have
    its bytes passed over; ``on_loss`` hears when something is seen to be missing.
    """

    def __init__(
        self,
        open_reader: Callable[[Connection], StreamReader | None],
        counters: CounterSet,
        *,
        capacity: int = 65536,
        on_loss: Callable[[int], None] = lambda _timestamp_ns: None,
    ) -> None:
        self._open_reader = open_reader
        self._on_loss = on_loss
        self._capacity = capacity
        self._connections: dict[int, Connection] = {}

        def counter(name: str, unit: str, text: str) -> Counter:
            return counters.counter(f"otel_qtap.connection.{name}", unit, text)

        self._opened = counter("opened", "{connection}", "Connections followed so far")
        self._evicted = counter(
            "evicted", "{connection}", "Connections given up because the table was full"
        )
        self._forgotten = counter(
            "ends_lost", "{connection}", "Connections whose end was lost with other events"
        )
        self._strays = counter(
            "strays", "{event}", "Events of connections whose beginning was not handed over"
        )
        self._gaps = counter("gaps", "{gap}", "Places where bytes of a stream are missing")
        self._gap_bytes = counter("gap_bytes", "By", "Bytes of streams that were not seen")
        counters.gauge(
            "otel_qtap.connection.active", "{connection}", "Connections being followed",
            lambda: len(self._connections),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._connections)

    def consume(self, event: Event) -> None:
        """Take the next event; those that do not concern a connection are passed over."""
        if type(event) is DataEvent:
            self.accept_data(event)
        elif isinstance(event, OpenEvent):
            self._on_open(event)
        elif isinstance(event, CloseEvent):
            self._on_close(event)

    def reconcile(self, account: Mapping[int, tuple[int, int]], before_ns: int) -> None:
        """
        Take note of ends that were lost: of connections, and the last bytes of streams.

        ``account`` is the kernel's: by id, how many bytes have passed on a connection, received
        and sent. A connection that it does not know any more is over; where more bytes have
        passed than were handed over, they are missing. What was heard of since ``before_ns``
        is left alone.
        """
        for connection in list(self._connections.values()):
            if connection.last_seen_ns >= before_ns:
                continue
            passed, reader = account.get(connection.id), connection.reader
            if passed is None:
                del self._connections[connection.id]
                self._forgotten.value += 1
                if reader is not None:
                    reader.give_up(connection.last_seen_ns)
            elif reader is not None:
                self._miss_tails(connection, reader, passed, connection.last_seen_ns)

    def close(self, timestamp_ns: int) -> None:
        """Give up every connection, because the agent stops."""
        for connection in list(self._connections.values()):
            if connection.reader is not None:
                connection.reader.give_up(timestamp_ns)
        self._connections.clear()

    def accept_data(self, event: DataEvent) -> None:
        """Take the next piece of a stream; ``consume`` for callers who know what they hold."""
        connection = self._connections.get(event.connection_id)
        if connection is None:
            self._strays.value += 1
            self._on_loss(event.timestamp_ns)
            return
        reader = connection.reader
        _, connection.last_seen_ns, _, _, flow, offset, size, _, data, _ = event
        if reader is None:
            return
        expected = connection.expected[flow]
        if offset != expected:
            if 0 <= expected < offset:
                self._on_loss(event.timestamp_ns)
                self._miss(reader, flow, offset - expected, event.timestamp_ns)
            elif expected > offset:  # cannot be: a kernel side of another version, a bad recording
                self._strays.value += 1
                return
        connection.expected[flow] = offset + size
        if data:
            reader.stream_data(event)
        if size > len(data):
            self._miss(reader, flow, size - len(data), event.timestamp_ns)

    def _miss_tails(
        self,
        connection: Connection,
        reader: StreamReader,
        passed: tuple[int, int],
        timestamp_ns: int,
    ) -> None:
        """The last bytes of a stream may be among what was lost; then no later ones tell it."""
        for flow in Flow:
            expected = connection.expected[flow]
            missing = passed[flow] - expected
            if missing > 0 and expected >= 0:
                connection.expected[flow] += missing
                self._on_loss(timestamp_ns)
                self._miss(reader, flow, missing, timestamp_ns)

    def _miss(self, reader: StreamReader, flow: Flow, size: int, timestamp_ns: int) -> None:
        self._gaps.value += 1
        self._gap_bytes.value += size
        reader.stream_gap(flow, size, timestamp_ns)

    def _on_open(self, event: OpenEvent) -> None:
        if event.connection_id in self._connections or event.role is Role.UNKNOWN:
            self._strays.value += 1
            return
        if len(self._connections) >= self._capacity:
            self._evict()
        connection = Connection(event)
        self._connections[connection.id] = connection
        connection.reader = self._open_reader(connection)
        self._opened.value += 1

    def _on_close(self, event: CloseEvent) -> None:
        connection = self._connections.get(event.connection_id)
        if connection is None:
            self._strays.value += 1
            self._on_loss(event.timestamp_ns)
            return
        is_destroyed = event.step is CloseStep.DESTROYED
        if connection.reader is not None and (is_destroyed or event.stream is not NO_MARK):
            # The process itself is closing it, so nothing of it can still be on the way.
            self._miss_tails(connection, connection.reader, event.passed, event.timestamp_ns)
        if is_destroyed:
            del self._connections[event.connection_id]
        if connection.reader is not None:
            connection.reader.stream_step(event)

    def _evict(self) -> None:
        """Make room: the connections that have been silent longest are likely dead ones."""
        by_age = sorted(self._connections.values(), key=lambda c: c.last_seen_ns)
        for connection in by_age[: max(1, self._capacity // _EVICTED_SHARE)]:
            del self._connections[connection.id]
            self._evicted.value += 1
            if connection.reader is not None:
                connection.reader.give_up(connection.last_seen_ns)
