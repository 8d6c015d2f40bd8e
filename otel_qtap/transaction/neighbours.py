"""
Both ends of one TCP connection: two processes of this host that talk to each other.

What one end sends is what the other receives, byte for byte, so a request is the same on
both if it begins at the same place of the stream. That holds whatever is lost, because the
places are counted by the kernel. Then the request that one process sent (CLIENT) is what
the other one served (SERVER).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeAlias

from otel_qtap.connection.tracker import Connection
from otel_qtap.counters import CounterSet
from otel_qtap.events import Role
from otel_qtap.transaction.exchange import Exchange

__all__ = ["Meeting", "Neighbours"]

_KEPT_REQUESTS = 8
_LONGEST_WAIT_NS = 60_000_000_000
_Key: TypeAlias = tuple[str, int, str, int, int]


class Meeting:
    """A connection of which both ends are captured."""

    __slots__ = ("_is_over", "_sent", "_waiting", "connections")

    def __init__(self) -> None:
        self.connections: dict[Role, int] = {}
        """Ids, by the role of the end."""
        self._sent: dict[int, Exchange] = {}
        """What the client's end asked last, by where it begins."""
        self._waiting: dict[int, tuple[int, Callable[[Exchange | None], None]]] = {}
        self._is_over = False

    @property
    def is_complete(self) -> bool:
        """Whether both ends have been seen."""
        return len(self.connections) == 2

    def send(self, exchange: Exchange) -> None:
        """The client's end begins a request."""
        position = exchange.position
        self._sent[position] = exchange
        if len(self._sent) > _KEPT_REQUESTS:
            del self._sent[next(iter(self._sent))]
        if self._waiting:
            for other in [each for each in self._waiting if each <= position]:
                _, proceed = self._waiting.pop(other)
                proceed(exchange if other == position else None)  # what came before was lost

    def receive(
        self, position: int, now_ns: int, proceed: Callable[[Exchange | None], None]
    ) -> None:
        """Call ``proceed`` with the request that was sent at ``position``, once it is known."""
        sent = self._sent.get(position) if position >= 0 else None
        if sent is not None or self._is_over or position < 0:
            proceed(sent)
        else:
            self._waiting[position] = (now_ns, proceed)

    def expire(self, before_ns: int) -> None:
        """Let go of those that have waited since before that time."""
        for position in [p for p, (since_ns, _) in self._waiting.items() if since_ns < before_ns]:
            self._waiting.pop(position)[1](None)

    def close(self) -> None:
        """The client's end is gone: no request will follow."""
        self._is_over = True
        waiting, self._waiting = self._waiting, {}
        for _, proceed in waiting.values():
            proceed(None)


class Neighbours:
    """Finds the two ends of connections."""

    def __init__(self, counters: CounterSet) -> None:
        self._meetings: dict[_Key, Meeting] = {}
        self._ambiguous = counters.counter(
            "otel_qtap.link.same_addresses", "{connection}",
            "Connections with the addresses of another one, so that their ends were not paired",
        )  # fmt: skip
        counters.gauge(
            "otel_qtap.link.neighbours", "{connection}",
            "Connections of which both ends are captured",
            lambda: sum(meeting.is_complete for meeting in list(self._meetings.values())),
        )  # fmt: skip

    def join(self, connection: Connection) -> Meeting | None:
        """Return the meeting of a connection that opens; the other end may not be there yet."""
        if connection.joined_late:
            return None  # where its stream began is not known
        key = _key_of(connection)
        meeting = self._meetings.get(key)
        if meeting is None:
            meeting = self._meetings[key] = Meeting()
        elif connection.role in meeting.connections:
            # The same addresses in another network, or again before the end was seen.
            self._ambiguous.value += 1
            meeting.close()
            meeting = self._meetings[key] = Meeting()
        meeting.connections[connection.role] = connection.id
        return meeting

    def leave(self, connection: Connection, meeting: Meeting) -> None:
        """One end is gone."""
        if connection.role is Role.CLIENT:
            meeting.close()
        meeting.connections.pop(connection.role, None)
        key = _key_of(connection)
        if not meeting.connections and self._meetings.get(key) is meeting:
            del self._meetings[key]

    def tick(self, now_ns: int) -> None:
        """Let go of those that have waited too long; called about once a second."""
        for meeting in list(self._meetings.values()):
            meeting.expire(now_ns - _LONGEST_WAIT_NS)


def _key_of(connection: Connection) -> _Key:
    client, server = connection.local, connection.remote
    if connection.role is Role.SERVER:
        client, server = server, client
    # A loopback address means something within its own network namespace only.
    is_local = ip_address(client.address).is_loopback or ip_address(server.address).is_loopback
    return (*client, *server, connection.namespace if is_local else 0)
